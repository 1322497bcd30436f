# Megatron-LTD on NVIDIA's PyTorch image, whose torch and Transformer Engine stay as they are.
#
#     docker build --file tools/container/gpu.Dockerfile --tag megatron-ltd:gpu .
#     docker run --rm --gpus all --ipc host --volume "$PWD:/work" megatron-ltd:gpu
#
# Another image: --build-arg IMAGE=nvcr.io/nvidia/pytorch:TAG. The build ends with an error if its Transformer Engine is
# not of a version that the extra `gpu` allows, or if pip would have changed one of the image's packages for GPUs.
ARG IMAGE=nvcr.io/nvidia/pytorch:25.12-py3

FROM python:3.12-slim AS wheel
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE ./
COPY megatron megatron
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# hadolint ignore=DL3006
FROM ${IMAGE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
COPY --from=wheel /wheels /wheels
# NVIDIA's own constraints name every package of the image; those that were built for its CUDA are held here.
# hadolint ignore=DL3013
RUN held() { pip list --format=freeze | grep -iE '^(numpy|torch|(pytorch-)?triton|transformer[-_]engine|flash[-_]attn)'; } \
    && held >/held.txt \
    && wheel="$(echo /wheels/megatron_ltd-*.whl)" \
    && PIP_CONSTRAINT=/held.txt pip install --no-cache-dir "${wheel}[bert,data,logging,plot]" \
    && held | diff /held.txt - \
    && python -c "from importlib.metadata import requires, version; from packaging.requirements import Requirement; \
needed = [item for item in map(Requirement, requires('megatron-ltd')) if item.name == 'transformer-engine']; \
found = version('transformer-engine'); \
assert all(item.specifier.contains(found, prereleases=True) for item in needed), f'transformer-engine {found}: not {needed[0]}'"

WORKDIR /work
CMD ["python", "-m", "megatron.ltd.doctor"]
