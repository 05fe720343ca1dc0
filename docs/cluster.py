"""Labels a folder of pictures on all machines of a Ray cluster, by what `classifier.predict` calls for a batch.

    pip install 'ray[data]'
    python docs/cluster.py photos --model models/vit --output predictions                     # this machine alone
    ray job submit --working-dir . -- python docs/cluster.py s3://bucket/photos --model … --output
    s3://bucket/predictions

Run it from the repository's folder, with requirements.txt installed on every machine. OUTPUT is a folder of parquet
files: the table's columns without `index`, as rows come in any order. A batch that was lost with its machine is
computed again; a run that was stopped as a whole is not gone on with, which `classifier.predict` can do.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script in a folder of its own does not see the library

import pyarrow as pa  # noqa: E402
import ray  # noqa: E402

from classifier import errors, load_predictor, predict  # noqa: E402
from classifier.cli import positive_int  # noqa: E402
from classifier.data.sources import IMAGE_SUFFIXES  # noqa: E402


class Label:
    """A model that is loaded once, in a process that Ray keeps, and called with batch after batch.

    Args:
        model: as `load_predictor` takes it.
        k: labels an image.
    """

    def __init__(self, model: str, k: int):
        self.predictor = load_predictor(model)
        self.predictor.compile()
        self.k = min(k, len(self.predictor.labels))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """`path` and `bytes` of N images -> N rows."""
        answers = predict.classify(self.predictor, batch["bytes"].to_pylist())
        rows = [
            {"file": file} | predict.cells(self.predictor, answer, self.k, predict.why)
            for file, answer in zip(batch["path"].to_pylist(), answers, strict=True)
        ]
        return pa.Table.from_pylist(rows, predict.schema(self.k).remove(0))


def main() -> None:
    """Reads, labels and writes, all at the same time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder, or what stands for one in an object store")
    parser.add_argument("--model", required=True, help="a folder that all machines have, a Hub id, or id@revision")
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="of the parquet files; there must be none yet"
    )
    parser.add_argument("--top_k", type=positive_int, default=5, metavar="K", help="labels an image (%(default)s)")
    parser.add_argument(
        "--processes", type=positive_int, metavar="N", help="that label, of a core each (all cores but one)"
    )
    args = parser.parse_args()
    ray.init()  # the cluster that it is submitted to, or one of this machine
    cores = int(ray.cluster_resources()["CPU"])
    suffixes = [suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES]
    images = ray.data.read_binary_files(args.source, include_paths=True, file_extensions=suffixes)
    labelled = images.map_batches(
        Label,
        fn_constructor_args=(args.model, args.top_k),
        batch_size=predict.CHUNK,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=args.processes or max(1, cores - 1)),  # one is left to read and write
        num_cpus=1,
    )
    labelled.write_parquet(args.output, mode=ray.data.SaveMode.ERROR)


if __name__ == "__main__":
    errors.run(main)
