//! A target for each parser of `data2vec_tests::parsers`.

/// The target of the parser with this name.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        std::thread_local! {
            static PARSER: std::cell::RefCell<data2vec_tests::parsers::Parser> =
                data2vec_tests::parsers::parser($name).into();
        }

        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
            PARSER.with_borrow_mut(|parse| parse(bytes));
        });
    };
}
