# The image of a cluster node: Ray's official image with ali_dist on top.
#
#   docker build -t ali-dist:0.1.0 .
#   docker run --rm --gpus all -v "$PWD/runs:/work/runs" ali-dist:0.1.0 python -m ali_dist.train --run.name demo
#
# All Python packages, Ray included, are in the virtual environment /opt/ali, so that what runs is what constraints.txt
# names. The base has what `ray up` and Kubernetes expect of a node: user `ray`, sudo, rsync, ssh, bash, wget. Ray's CPU
# image is enough for GPUs: torch brings its own CUDA libraries, the host's NVIDIA runtime brings the driver. It has no
# compiler; for `--scale.compile true`, which calls one, build with --build-arg BASE_IMAGE=rayproject/ray:2.60.0-py311-gpu.
# On Kubernetes any other image with Python 3.11, its venv module and bash works, too.
#
# The dependencies are gigabytes, and the same for many versions of the code. Once they are built and pushed, machines
# that have never built them can use them, and a changed line of code costs seconds:
#
#   docker build --target dependencies -t registry.example.com/ali-dependencies:1 .
#   docker build --build-context dependencies=docker-image://registry.example.com/ali-dependencies:1 -t ali-dist:0.1.0 .

ARG BASE_IMAGE=rayproject/ray:2.60.0-py311-cpu

# Only a change of pyproject.toml or constraints.txt builds this stage anew.
FROM ${BASE_IMAGE} AS dependencies
USER root
WORKDIR /build
COPY pyproject.toml constraints.txt ./
RUN python3 -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
        print(*p["dependencies"], *p["optional-dependencies"]["sweep"], "setuptools", sep="\n")' > requirements.txt \
    && python3 -m venv /opt/ali \
    && /opt/ali/bin/python -m pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt

# The package itself is small, and new at every change of the code. The pinned setuptools builds it; nothing is fetched.
FROM ${BASE_IMAGE} AS package
USER root
WORKDIR /build
COPY . .
RUN --mount=type=bind,from=dependencies,source=/opt/ali,target=/opt/ali \
    /opt/ali/bin/python -m pip wheel --no-deps --no-build-isolation --no-cache-dir --no-index --wheel-dir /wheel .

FROM ${BASE_IMAGE}
ARG BASE_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ali-dist" \
      org.opencontainers.image.description="Distributed training of Adversarially Learned Inference on Ray" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
USER root
COPY --from=dependencies /opt/ali /opt/ali
# `ray up` starts Ray from login shells (`bash --login -c -i`), which set PATH anew: in /etc/profile, and then in the
# user's own files, where Ray's image puts its conda first. So our environment is put first at the end of both. In Ray's
# image user 1000 is `ray`.
RUN --mount=type=bind,from=package,source=/wheel,target=/wheel \
    /opt/ali/bin/python -m pip install --no-deps --no-cache-dir --no-index --ignore-installed /wheel/*.whl \
    && { getent passwd 1000 > /dev/null || useradd --home-dir /home/ray --shell /bin/bash --uid 1000 ray; } \
    && install --directory --owner 1000 /home/ray /work \
    && echo 'export PATH=/opt/ali/bin:$PATH' | tee --append /etc/profile.d/ali.sh /home/ray/.bashrc > /dev/null
ENV HOME=/home/ray PATH=/opt/ali/bin:$PATH
USER 1000
WORKDIR /work
CMD ["python", "-m", "ali_dist.train", "--help"]
