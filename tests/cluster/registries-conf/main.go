// registries-conf FILE IMAGE: reads FILE, a registries.conf, as CRI-O, podman and skopeo do for a pull of IMAGE, and
// prints the places that they would ask, in order, as JSON. An error of the reader ends it with 1.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"
)

type source struct {
	Image    string `json:"image"`
	Insecure bool   `json:"insecure"`
}

func main() {
	sources, err := read(os.Args[1], os.Args[2])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(sources)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func read(file, image string) ([]source, error) {
	sources := []source{}
	name, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return nil, err
	}
	system := &types.SystemContext{SystemRegistriesConfPath: file, SystemRegistriesConfDirPath: "/nonexistent"}
	registry, err := sysregistriesv2.FindRegistry(system, name.Name())
	if err != nil {
		return nil, err
	}
	if registry == nil {
		return append(sources, source{Image: name.String()}), nil
	}
	if registry.Blocked {
		return sources, nil
	}
	places, err := registry.PullSourcesFromReference(name)
	if err != nil {
		return nil, err
	}
	for _, place := range places {
		sources = append(sources, source{Image: place.Reference.String(), Insecure: place.Endpoint.Insecure})
	}
	return sources, nil
}
