# Commands of hqc_tf on CPUs, from the wheel:
#   docker build -t hqc-tf .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" -w /data hqc-tf hqc_tf.train \
#       --dataset=folder:photos/ --image_size=64 --backbone_width=16 --batch_size=64 --epochs=10 \
#       --warmup_epochs=1 --workdir=runs/photos
FROM python:3.12-slim AS build
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.12-slim
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/hqc_tf-*.whl)[search,serving,report,browse]" \
    && useradd --create-home hqc
COPY configs /configs
USER hqc
ENTRYPOINT ["python", "-m"]
CMD ["hqc_tf.train", "--help"]
