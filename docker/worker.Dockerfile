# A worker: one job at a time. torch for CPUs unless TORCH_INDEX says otherwise:
#   --build-arg TORCH_INDEX=https://pypi.org/simple    torch for NVIDIA GPUs (on x86-64 Linux)
#   --build-arg EXTRAS=worker,plot,tasks,telemetry,quantized     bitsandbytes too, for compute.quantization
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim-trixie AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# in a step of its own, so that a change of the sources does not download torch again
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/replaceme \
    && /opt/replaceme/bin/python -m pip install --index-url "${TORCH_INDEX}" "torch>=2.9"
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY api ./api
COPY migrations ./migrations
COPY replaceme_core ./replaceme_core
COPY worker ./worker
ARG EXTRAS=worker,plot,tasks,telemetry
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip wheel --no-deps --wheel-dir /wheels . \
    && /opt/replaceme/bin/python -m pip install "$(echo /wheels/replaceme-*.whl)[${EXTRAS}]"

FROM python:${PYTHON_VERSION}-slim-trixie
# volumes are mounted on the last three folders and take over their owner
RUN groupadd --gid 10001 replaceme \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin replaceme \
    && install --directory --owner 10001 --group 10001 --mode 0700 \
        /data /data/cache /data/hub-cache /data/workspace /data/cache/statistics
COPY --from=build /opt/replaceme /opt/replaceme
ENV PATH=/opt/replaceme/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    REPLACEME_DATA=/data \
    HF_HOME=/data/hub-cache/.huggingface
# empty and not writable, because celery looks for modules in the working directory first
WORKDIR /app
USER 10001:10001
# pings this worker through the broker; it answers during a job too
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s --retries=3 \
    CMD ["sh", "-c", "exec python -m celery --quiet -A worker.app inspect ping --timeout 10 --destination celery@$HOSTNAME"]
CMD ["python", "-m", "celery", "--quiet", "-A", "worker.app", "worker", "--pool", "prefork", "--concurrency", "1", "--loglevel", "INFO"]
