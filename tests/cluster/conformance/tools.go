//go:build tools

// Package tools names the programs that the build script makes, so that go.mod pins them: the specification's
// conformance suite, and a registry that passes all of it.
package tools

import (
	_ "github.com/olareg/olareg/cmd/olareg"
	_ "github.com/opencontainers/distribution-spec/conformance"
)
