"""FLICKR25K and NUS-WIDE for `tfds.load`, which knows them once this module is imported.

    config = tfds.download.DownloadConfig(manual_dir="photos")
    tfds.load("flickr25k", download_and_prepare_kwargs={"download_config": config})

Nothing is downloaded: `photo_sets.read_photos` says where lists and photos belong. `hqc_tf.train`
reads them there itself and does not need this module.
"""

import inspect
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from hqc_tf.data import photo_sets
from hqc_tf.data.images import Images


def _instructions(name: str, lists: Iterable[photo_sets.PhotoList]) -> str:
    files = ", ".join(of.file for of in lists)
    photos = " or ".join(f"{folder}/" for folder in photo_sets.PHOTO_FOLDERS[name] if folder)
    return (
        f"manual_dir holds {files} in {name}/ or directly; the photos lie, by their names in the "
        f"lists, beside the lists or in {photos} there."
    )


class _PhotoBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Features of both: the file as `image`, its name in the list, multi-hot `labels`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        labels = tfds.features.Tensor(shape=(photo_sets.NUM_LABELS[self.name],), dtype=np.uint8)
        features = {"image": tfds.features.Image(), "file_name": tfds.features.Text()}
        return self.dataset_info_from_configs(
            description=inspect.getdoc(self),
            features=tfds.features.FeaturesDict(features | {"labels": labels}),
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
        )

    def _generate_examples(self, photos: Images) -> Iterator[tuple[int, dict]]:
        for row, (path, name) in enumerate(zip(photos.paths, photos.ids, strict=True)):
            # By row, as a list may name a photo twice.
            yield row, {"image": path, "file_name": name, "labels": photos.labels[row]}


class Flickr25k(_PhotoBuilder):
    """MIRFLICKR-25000 with 24 labels: `test` has the 2,000 queries, `train` the other photos."""

    HOMEPAGE = "https://press.liacs.nl/mirflickr/"
    CITATION = "M. J. Huiskes, M. S. Lew. The MIR Flickr Retrieval Evaluation. ACM MIR, 2008."
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions(
        "flickr25k", [photo_sets.FLICKR_NAMES, photo_sets.FLICKR_LABELS]
    )

    def _split_generators(self, dl_manager):
        train, query = (
            photo_sets.read_photos("flickr25k", role, dl_manager.manual_dir)
            for role in ("train", "query")
        )
        return {"train": self._generate_examples(train), "test": self._generate_examples(query)}


class Nuswide(_PhotoBuilder):
    """NUS-WIDE with 21 labels: `test` has the queries, `database` what they search.

    Models are trained on `database` or on `train_10500`, photos of it. A split whose list is
    missing is left out, and a warning names it.
    """

    HOMEPAGE = "https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html"
    CITATION = (
        "T.-S. Chua, J. Tang, R. Hong, H. Li, Z. Luo, Y. Zheng. NUS-WIDE: A Real-World Web Image "
        "Database from National University of Singapore. ACM CIVR, 2009."
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions("nuswide", photo_sets.NUSWIDE_LISTS.values())

    def _split_generators(self, dl_manager):
        splits = photo_sets.nuswide_splits(dl_manager.manual_dir)
        for name in photo_sets.NUSWIDE_LISTS.keys() - splits.keys():
            logging.warning("nuswide has no split %s: its list is missing", name)
        return {name: self._generate_examples(photos) for name, photos in splits.items()}
