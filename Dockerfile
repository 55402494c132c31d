# The image of the pipeline, without packages that only tests or builds need.
FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /opt/unskew
COPY requirements-runtime.lock ./
RUN /opt/unskew/bin/pip install --no-cache-dir --require-hashes --no-deps -r requirements-runtime.lock
COPY pyproject.toml README.md LICENSE ./
COPY examples ./examples
COPY src ./src
RUN /opt/unskew/bin/pip install --no-cache-dir --no-build-isolation --no-deps .

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/unskew unskew \
 && install -d -o unskew /var/cache/unskew /var/lib/unskew /var/lib/unskew/state \
      /var/lib/unskew/log /var/lib/unskew/archive /var/lib/unskew/dead_letters /var/lib/unskew/registry \
      /var/lib/unskew/served /var/lib/unskew/baselines /var/lib/unskew/figures
COPY --from=build /opt/unskew /opt/unskew
# Compiled functions are kept in a folder that this user may write to, unlike the package's own folder. They are compiled
# for the processor of the machine that builds the image; where it runs on another kind, they are compiled at the start.
ENV PATH=/opt/unskew/bin:$PATH PYTHONUNBUFFERED=1 NUMBA_CACHE_DIR=/var/cache/unskew
USER unskew
RUN unskew warm
WORKDIR /var/lib/unskew
ENTRYPOINT ["unskew"]
CMD ["--help"]
