# The image of a node: MedFocus with every package pinned, for Kubernetes and for `ray up`.
#   docker build -t registry.example.com/medfocus:0.1.0-cuda .
#   docker build -t registry.example.com/medfocus:0.1.0-cpu --build-arg TORCH=cpu --build-arg PIP_EXTRA_INDEX_URL=... .
# TORCH is the build of torch: cuda, as torch's own default on Linux is, or cpu, for which PIP_EXTRA_INDEX_URL names the
# index of torch's CPU builds. The build stops where pip found the other one. EXTRAS are those of pyproject.toml.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG TORCH=cuda
ARG EXTRAS=aws
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY cluster cluster
COPY medfocus medfocus
COPY pipeline pipeline
COPY stages stages
COPY starter starter
RUN cluster/install.sh /opt/medfocus ".[${EXTRAS}]"

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="MedFocus" \
      org.opencontainers.image.description="Archives of medical images to scored, explained results. Not for clinical use." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# What Ray's launcher (ssh, rsync) and KubeRay's probes (wget) call on a node.
RUN apt-get update \
    && apt-get install -y --no-install-recommends openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 medfocus \
    && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash medfocus \
    # A login shell, as Ray's launcher starts one, sets PATH anew.
    && echo 'export PATH=/opt/medfocus/bin:$PATH' > /etc/profile.d/medfocus.sh
COPY --from=build /opt/medfocus /opt/medfocus
COPY LICENSE NOTICE /usr/share/doc/medfocus/
ENV PATH=/opt/medfocus/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /home/medfocus
# doctor starts a Ray of its own for some ten seconds of two cores, so that it is not asked often. Kubernetes has probes
# of its own and ignores this.
HEALTHCHECK --interval=10m --timeout=2m --start-period=2m --retries=3 \
    CMD ["medfocus", "doctor", "--quiet", "--set", "work=/tmp/doctor"]
# No entry point: Ray's launcher and KubeRay start their own commands.
CMD ["medfocus", "--help"]
