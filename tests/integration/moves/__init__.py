"""Tests of moves that share two engines: a package, so that pytest stops them when it leaves this folder."""
