"""The version of this package, for whatever may not import the package itself, whose surface imports everything."""

VERSION = "0.1.0"
