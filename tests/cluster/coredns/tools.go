//go:build tools

// Package tools names the program that the build script makes, so that go.mod pins it.
package tools

import _ "github.com/coredns/coredns"
