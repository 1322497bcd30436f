"""Which packages are ours; everything else about the distribution is in pyproject.toml.

``megatron`` is a PEP 420 namespace shared with Megatron-Core. Only ``megatron.ltd`` may enter the wheel, and there is
no ``megatron/__init__.py``: it would hide ``megatron.core``.
"""

from setuptools import find_namespace_packages, setup

setup(
    packages=find_namespace_packages(include=["megatron.ltd", "megatron.ltd.*"]),
    package_data={"megatron.ltd.reports.page": ["*.jinja"], "megatron.ltd.megatron_lm": ["*.txt"]},
    py_modules=[],
)
