# A checkout with its environment, on the CPU build of torch: the versions of constraints.txt.
#
#     docker build --file tools/container/cpu.Dockerfile --tag megatron-ltd:cpu .
#     docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" megatron-ltd:cpu megatron-ltd --help
FROM python:3.12-slim

ENV TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu \
    PIP_NO_CACHE_DIR=1
WORKDIR /opt/megatron-ltd
COPY . .
RUN bash tools/setup_env.sh bert data logging plot

# Any user may run it, also one without a name: results go to /work, and caches of libraries to a folder open to all.
ENV PATH=/opt/megatron-ltd/.venv/bin:$PATH \
    HOME=/tmp
WORKDIR /work
USER 65534
CMD ["python", "-m", "megatron.ltd.doctor"]
