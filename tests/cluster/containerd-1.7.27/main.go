// containerd-hosts-1.7.x ROOT HOST: reads ROOT/HOST/hosts.toml as containerd does for a pull of HOST/..., and prints the
// registries that it would ask, in order, as JSON. An error of the reader ends it with 1.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"

	"github.com/containerd/containerd/remotes/docker"
	"github.com/containerd/containerd/remotes/docker/config"
)

type host struct {
	URL      string `json:"url"`
	Pull     bool   `json:"pull"`
	Resolve  bool   `json:"resolve"`
	Push     bool   `json:"push"`
	CustomCA bool   `json:"customCA"`
}

func main() {
	options := config.HostOptions{HostDir: config.HostDirFromRoot(os.Args[1])}
	read, err := config.ConfigureHosts(context.Background(), options)(os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	hosts := []host{}
	for _, one := range read {
		transport, ok := one.Client.Transport.(*http.Transport)
		hosts = append(hosts, host{
			URL:      one.Scheme + "://" + one.Host + one.Path,
			Pull:     one.Capabilities.Has(docker.HostCapabilityPull),
			Resolve:  one.Capabilities.Has(docker.HostCapabilityResolve),
			Push:     one.Capabilities.Has(docker.HostCapabilityPush),
			CustomCA: ok && transport.TLSClientConfig.RootCAs != nil,
		})
	}
	if err := json.NewEncoder(os.Stdout).Encode(hosts); err != nil {
		panic(err)
	}
}
