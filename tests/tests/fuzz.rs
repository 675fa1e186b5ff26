//! Fuzzes every parser with mutations of valid files, see `data2vec_tests::fuzz`.

use data2vec_tests::fuzz::fuzz;
use data2vec_tests::parsers::{NAMES, parser};

macro_rules! parsers {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                fuzz(stringify!($name), parser(stringify!($name)));
            }
        )*

        #[test]
        fn every_parser_is_tested() {
            assert_eq!(NAMES, [$(stringify!($name)),*]);
        }
    };
}

parsers! {
    arpa checkpoint dictionary encoder idx kenlm manifest pickle safetensors shard table text tokenizer transcripts
}
