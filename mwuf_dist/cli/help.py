"""What `mwuf --help` and `mwuf COMMAND --help` say."""

from __future__ import annotations

USAGE = """\
usage: mwuf COMMAND CONFIG [options], or another first argument as below

Makes new items rank well before they have clicks (MWUF, SIGIR 2021).

  mwuf run CONFIG       do one run (prepare, pretrain, meta_train, warm_up, evaluate), or continue it
  mwuf compare CONFIG   compare methods, backbones and seeds (section [study]) in one report
  mwuf tune CONFIG      search settings (section [tune]) on old items played as new
  mwuf recommend CONFIG find the method for these data within --minutes, and write the config to deploy
  mwuf plan CONFIG      estimate what a run would need on other devices
  mwuf prepare CONFIG   only read, split and write the data
  mwuf init LOGS        write a config for your own logs
  mwuf vectors ITEMS    make vectors of items from their text, for data.item_vectors
  mwuf synthesize NAME  generate raw files of any size in the layout of a public data set
  mwuf export RUN       write warm embeddings and the model of a finished run, for a server
  mwuf warm RUN         the daily job: update the embeddings of new items by new interactions, nothing else
  mwuf apply FOLDER     bring an export, or a copy of the run, up to date with the deltas of such jobs
  mwuf serve-check DIR  score with an export as a server would, and compare with the run
  mwuf explain RUN      show why an item has its embedding, and how its score moved with its clicks
  mwuf adopt WEIGHTS    make warm embeddings for new items of a model that was trained elsewhere
  mwuf doctor           check this machine and the installation

examples:
  mwuf compare configs/demo.toml
  mwuf run configs/movielens-1m.toml --seed 1 --output runs/ml --backbone.name wide_deep
  torchrun --nproc-per-node=2 -m mwuf_dist run configs/movielens-1m.toml

`mwuf COMMAND CONFIG --help` lists every key of the config, with the value it has there."""

EXAMPLES = {
    "run": """\
Prepares the data, trains and evaluates one run, or continues it where it stopped.

examples:
  mwuf run configs/demo.toml
  mwuf run configs/movielens-1m.toml --seed 1 --output runs/ml-1
  mwuf run configs/demo.toml --backbone.name deepfm --method.name base --warm-up.epochs 5
  torchrun --nproc-per-node=2 -m mwuf_dist run configs/movielens-1m.toml
  mwuf run configs/movielens-1m.toml --launcher ray --num-workers 2
  mwuf run configs/movielens-1m.toml --launcher ray --num-workers 8 --ray-address 10.0.0.1:6379""",
    "compare": """\
Does the runs in section [study] of the config, with several seeds, and writes one report.

examples:
  mwuf compare configs/demo.toml
  mwuf compare configs/demo.toml --seeds 5 --output runs/five-seeds
  mwuf compare configs/movielens-1m-paper-rq1.toml --parallel 4
  mwuf compare configs/demo.toml --seeds 5 --first-seed 5 --output runs/five-more
  mwuf compare configs/demo.toml --seeds 10 --records runs/five-seeds runs/five-more
  mwuf compare configs/demo.toml --backbone.name deepfm --pretrain.epochs 2""",
    "tune": """\
Tries the settings of section [tune] on old items played as new, ranks them, and writes a config with the best settings
of each run, for `mwuf compare`.

examples:
  mwuf tune configs/movielens-1m-tune.toml
  mwuf tune configs/movielens-1m-tune.toml --output runs/tune --backbone.name wide_deep
  mwuf tune configs/movielens-1m-equal-budget.toml --parallel 4""",
    "recommend": """\
Tries methods on old items played as new, within a time budget, and compares them with what needs no method: a base
whose new items start from the mean row, at its own best rate. The better half goes on to the next fold. The gain of
the best is measured on items that had no part in the choice: a method is recommended where its whole 95 % interval is
above zero. Writes recommend.json and a config for `mwuf run`. The same command continues if the time was too short.

examples:
  mwuf recommend configs/movielens-1m.toml
  mwuf recommend logs.toml --minutes 120 --output runs/which
  mwuf recommend configs/demo.toml --minutes 5 --methods mwuf semantic_id""",
    "plan": """\
Prints the sharding plan, memory per rank, bytes sent per step and an estimated step time. The devices need not be here.

examples:
  mwuf plan configs/movielens-1m.toml --world-size 64 --device h200 --rows 1e9
  mwuf plan configs/movielens-1m.toml --world-size 2 --embedding.dim 64
  mwuf plan configs/movielens-1m.toml --world-size 4 --ranks-per-host 2 --network-gbit-per-s 10""",
    "init": """\
Looks at your own logs (Parquet or CSV, a file or a folder) and writes a commented config that `mwuf run` takes.

examples:
  mwuf init clicks.parquet --output clicks.toml
  mwuf init plays/ --items songs.csv --output plays.toml --item song --label finished
  mwuf init --check clicks.toml today.parquet     # what has changed; exit code 2 where it cannot be used""",
    "prepare": """\
Only reads, splits and writes the data; later runs find them. `--launcher ray` spreads the work over several
workers; the files are the same.

examples:
  mwuf prepare configs/demo.toml
  MWUF_DATA_DIR=data mwuf prepare configs/movielens-1m.toml --data.prepared-dir shards
  MWUF_DATA_DIR=data mwuf prepare configs/cikm2019.toml --launcher ray --num-workers 8""",
}
