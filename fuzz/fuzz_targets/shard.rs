#![no_main]

data2vec_fuzz::target!("shard");
