#![no_main]

skep_fuzz::fuzz!("component");
