//go:build tools

// Package tools names the program of the oldest supported Kubernetes that the build script makes, so that go.mod pins it.
package tools

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
)
