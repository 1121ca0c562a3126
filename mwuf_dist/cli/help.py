"""What `mwuf --help` and `mwuf COMMAND --help` say."""

from __future__ import annotations

USAGE = """\
usage: mwuf COMMAND CONFIG [options]

Makes new items rank well before they have clicks (MWUF, SIGIR 2021).

  mwuf run CONFIG       prepare, pretrain, meta_train, warm_up, evaluate; run it again to go on where it stopped
  mwuf compare CONFIG   several methods and seeds (section [study]) and one report
  mwuf tune CONFIG      choose settings (section [tune]) on old items played as new
  mwuf recommend CONFIG which method for these data, tried within --minutes, and the config to deploy
  mwuf plan CONFIG      what a run would need on devices that are not here
  mwuf prepare CONFIG   only read, split and write the data
  mwuf init LOGS        look at your own logs and write a config for them
  mwuf vectors ITEMS    vectors of the items from their text, for data.item_vectors
  mwuf synthesize NAME  made-up raw files of any size, in the layout of a public data set
  mwuf export RUN       warm embeddings and dense model of a finished run, as files for a server
  mwuf warm RUN         the daily job: new interactions move new items' embeddings, and nothing else
  mwuf apply FOLDER     puts the deltas of such jobs into an export, or into a copy of the run
  mwuf serve-check DIR  scores with an export as a server has it, while deltas come, beside those of the run
  mwuf explain RUN      why one item has its embedding, and how its score moved with its clicks
  mwuf adopt WEIGHTS    warm embeddings for new items of a model that was trained elsewhere
  mwuf doctor           what this machine has, and what is wrong with it

examples:
  mwuf compare configs/demo.toml
  mwuf run configs/movielens-1m.toml --seed 1 --output runs/ml --backbone.name wide_deep
  torchrun --nproc-per-node=2 -m mwuf_dist run configs/movielens-1m.toml

`mwuf COMMAND CONFIG --help` lists every key of the config, with the value it has there."""

EXAMPLES = {
    "run": """\
Prepares the data, trains and evaluates one run, or goes on where it stopped.

examples:
  mwuf run configs/demo.toml
  mwuf run configs/movielens-1m.toml --seed 1 --output runs/ml-1
  mwuf run configs/demo.toml --backbone.name deepfm --method.name base --warm-up.epochs 5
  torchrun --nproc-per-node=2 -m mwuf_dist run configs/movielens-1m.toml
  mwuf run configs/movielens-1m.toml --launcher ray --num-workers 2
  mwuf run configs/movielens-1m.toml --launcher ray --num-workers 8 --ray-address 10.0.0.1:6379""",
    "compare": """\
Runs what section [study] of the config names, over several seeds, and writes one report.

examples:
  mwuf compare configs/demo.toml
  mwuf compare configs/demo.toml --seeds 5 --output runs/five-seeds
  mwuf compare configs/movielens-1m-rq1.toml --parallel 4
  mwuf compare configs/demo.toml --seeds 5 --first-seed 5 --output runs/five-more
  mwuf compare configs/demo.toml --seeds 10 --records runs/five-seeds runs/five-more
  mwuf compare configs/demo.toml --backbone.name deepfm --pretrain.epochs 2""",
    "tune": """\
Tries the settings of section [tune] on old items played as new, lists them by what they reach, and writes a config with
the best of each run, which `mwuf compare` takes.

examples:
  mwuf tune configs/movielens-1m-tune.toml
  mwuf tune configs/movielens-1m-tune.toml --output runs/tune --backbone.name wide_deep
  mwuf tune configs/movielens-1m-equal-budget.toml --parallel 4""",
    "recommend": """
Tries methods on old items played as new, within a time budget, against what needs no method: a base whose new items
start from the mean row, at its own best rate. The better half goes on to the next fold. The gain of the best is
measured on items that had no part in the choice: a method is recommended where its whole 95 % interval is above zero.
Writes recommend.json and a config for `mwuf run`. The same command goes on where the time was up.

examples:
  mwuf recommend configs/movielens-1m.toml
  mwuf recommend logs.toml --minutes 120 --output runs/which
  mwuf recommend configs/demo.toml --minutes 5 --methods mwuf semantic_id""",
    "plan": """\
Prints the sharding plan, memory per rank, bytes on the wire and an estimated step time; needs none of the devices.

examples:
  mwuf plan configs/movielens-1m.toml --world-size 64 --device h200 --rows 1e9
  mwuf plan configs/movielens-1m.toml --world-size 2 --embedding.dim 64""",
    "init": """\
Looks at your own logs (Parquet or CSV, a file or a folder) and writes a commented config that `mwuf run` takes.

examples:
  mwuf init clicks.parquet --output clicks.toml
  mwuf init plays/ --items songs.csv --output plays.toml --item song --label finished
  mwuf init --check clicks.toml today.parquet     # what has changed; exit code 2 where it cannot be used""",
    "prepare": """\
Reads, splits and writes the data, and stops there; later runs find it. `--launcher ray` spreads the work over several
workers; the files are the same.

examples:
  mwuf prepare configs/demo.toml
  MWUF_DATA_DIR=data mwuf prepare configs/movielens-1m.toml --data.prepared-dir shards
  MWUF_DATA_DIR=data mwuf prepare configs/cikm2019.toml --launcher ray --num-workers 8""",
}
