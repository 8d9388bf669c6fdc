# syntax=docker/dockerfile:1
# MAEDiff as a command: CPU by default, no rights, no network needed at run time. See docs/docker.md.
#   docker build -t maediff .
#   docker build -t maediff:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=prep
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/maediff
ENV PATH=/opt/maediff/bin:$PATH
WORKDIR /src
# PyTorch first, from its own index and of the locked version: the largest layer, rebuilt only when the lock changes.
COPY requirements.lock ./
# hadolint ignore=DL3013
RUN torch="$(sed -n 's/^\(torch==[0-9.]*\).*/\1/p' requirements.lock)" \
 && pip install --index-url "${TORCH_INDEX}" "${torch:?requirements.lock pins no torch}"
# The lock constrains what else is installed; development tools in it are not.
COPY pyproject.toml README.md LICENSE ./
COPY maediff/ maediff/
COPY cli/ cli/
COPY configs/ configs/
RUN sed -e '/^torch==/d' requirements.lock > constraints.txt \
 && pip install --constraint constraints.txt ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
LABEL org.opencontainers.image.title="MAEDiff" \
      org.opencontainers.image.description="Unsupervised anomaly detection in brain MRI. Research use only." \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --create-home --uid 1000 maediff
COPY --from=build /opt/maediff /opt/maediff
# Whoever `--user` names has no home: what libraries cache goes to /tmp.
ENV PATH=/opt/maediff/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib XDG_CACHE_HOME=/tmp/cache
USER 1000
WORKDIR /tmp
ENTRYPOINT ["maediff"]
CMD ["--help"]
