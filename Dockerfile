# The image of a cluster node: Ray's official image (or any with Python 3.11 and venv) with ali_dist on top.
#
#   docker build -t ali-dist .
#   docker run --rm --gpus all -v "$PWD/runs:/work/runs" ali-dist python -m ali_dist.train --run.name demo
#
# Everything lives in a virtual environment of its own, Ray included, so that what runs is what constraints.txt names.

ARG BASE_IMAGE=rayproject/ray:2.60.0-py311-gpu

# The dependencies: a layer of gigabytes that only pyproject.toml and constraints.txt can change.
FROM ${BASE_IMAGE} AS dependencies
USER root
WORKDIR /build
COPY pyproject.toml constraints.txt LICENSE ./
RUN mkdir ali_dist \
    && echo '__version__ = "0"' > ali_dist/__init__.py \
    && python3 -m venv /opt/ali \
    && /opt/ali/bin/python -m pip install --no-cache-dir --constraint constraints.txt . \
    && /opt/ali/bin/python -m pip uninstall --yes ali-dist

# The package itself: small, and new at every change of the code.
FROM dependencies AS package
COPY . .
RUN /opt/ali/bin/python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM ${BASE_IMAGE}
USER root
COPY --from=dependencies /opt/ali /opt/ali
# Login shells, which `ray up` starts Ray from, set PATH anew, so they are told, too. In Ray's image user 1000 is `ray`.
RUN --mount=type=bind,from=package,source=/wheel,target=/wheel \
    /opt/ali/bin/python -m pip install --no-cache-dir --no-deps /wheel/*.whl \
    && echo 'PATH=/opt/ali/bin:$PATH' > /etc/profile.d/ali.sh \
    && { getent passwd 1000 > /dev/null || useradd --create-home --uid 1000 ali; } \
    && echo 'PATH=/opt/ali/bin:$PATH' >> "$(getent passwd 1000 | cut -d: -f6)/.bashrc" \
    && mkdir -p /work \
    && chown 1000 /work
ENV PATH=/opt/ali/bin:$PATH
USER 1000
WORKDIR /work
CMD ["python", "-m", "ali_dist.train", "--help"]
