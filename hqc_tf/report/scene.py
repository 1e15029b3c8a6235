"""What a report looks at: the figures that runs have left, and a model with its images encoded."""

from typing import NamedTuple

from hqc_tf import config, model, retrieval
from hqc_tf.data import catalog
from hqc_tf.data.images import Images, hold_out
from hqc_tf.errors import UserError
from hqc_tf.workdir import read_metrics, read_settings

_ALL = slice(None)


class Run(NamedTuple):
    """What a training has left: its workdir, its settings, and its results.

    Attributes:
      results: `workdir.Result`s, the newest of each kind of weights, distance and R.
    """

    workdir: str
    settings: config.Config
    results: list


class Scene(NamedTuple):
    """A model and the images that it is shown with.

    Attributes:
      trained: `HQC`.
      images, queries: `data.Images` that are searched, and that ask.
      database, asked: `retrieval.Encoded` of them.
    """

    trained: model.HQC
    images: Images
    queries: Images
    database: retrieval.Encoded
    asked: retrieval.Encoded

    @property
    def codebooks(self):
        """float [M, K, D]."""
        return self.trained.quantizer.codebooks.numpy()

    @property
    def parts(self):
        """The columns of an embedding that belong to each book: list of M slices."""
        num_books, _, width = self.codebooks.shape
        return [slice(book * width, (book + 1) * width) for book in range(num_books)]

    def by_codes(self, queries, k):
        """The `Nearest` of embeddings [Q, M*D] by code, in chunks."""
        distance = self.trained.settings.distance
        return retrieval.nearest_by_chunk(queries, self.database.codes, self.codebooks, k, distance)

    def by_embeddings(self, queries, k, columns=_ALL):
        """The `Nearest` of embeddings [Q, M*D] by some columns of the others' embeddings."""
        images = self.database.embeddings[:, columns]
        return retrieval.nearest_embeddings_by_chunk(queries[:, columns], images, k)


def read_runs(workdirs):
    """The `Run`s of some workdirs, those of fewer bits first.

    Raises:
      UserError: one of them holds no run, or that of another data set than the first.
    """
    runs = [Run(name, read_settings(name), _newest_results(name)) for name in workdirs]
    for run in runs:
        if run.settings.dataset != runs[0].settings.dataset:
            raise UserError(
                f"--workdir={run.workdir}: learned from {run.settings.dataset}, and "
                f"{runs[0].workdir} from {runs[0].settings.dataset}; give runs of one data set"
            )
    return sorted(runs, key=lambda run: run.settings.bits)


def _newest_results(workdir):
    newest = {}
    for line in read_metrics(workdir):
        newest[line.weights, line.distance, line.top_k] = line
    return list(newest.values())


def show_to(trained, rejected=frozenset()):
    """The `Scene` of a model with the queries and the database of its data set.

    Without labels the images kept from training ask the others.

    Args:
      trained: `HQC`.
      rejected: ids of images of a folder that are left out.

    Raises:
      UserError: the data cannot be read.
    """
    c = trained.settings
    images, queries = (
        catalog.load_split(c.dataset, role, c.data_dir, rejected) for role in ("database", "query")
    )
    if queries is None:
        rest, queries = hold_out(images, c.held_out or len(images))
        # Of a handful of images all ask, and each finds itself.
        images, queries = (rest, queries) if len(queries) else (images, images)
    database = trained.encode_images(images, "database")
    asked = trained.encode_images(queries, "queries")
    return Scene(trained, images, queries, database, asked)
