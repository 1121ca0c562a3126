"""The stages of a run that train: pretrain, meta_train (or episodes), warm_up."""
