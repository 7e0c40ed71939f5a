//! A small API server in memory for tests: it stores what is written, as JSON, and feeds the world.
