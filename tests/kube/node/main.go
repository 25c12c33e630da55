// kube-node is a node of a Kubernetes cluster that runs pods as processes of this host's programs.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/validation"

	"crescendo.dev/kube-node/internal/sandbox"
)

// options are the flags.
type options struct {
	kubeconfig string
	name       string
	images     string
	gpus       int
	labels     map[string]string
	capacity   map[string]string
	state      string
	volumes    string
	bridge     string
	network    string
	stopGrace  time.Duration
	debug      bool
}

const usage = `kube-node registers a node with a Kubernetes API and runs the pods that are scheduled to it as processes of this host:
each pod in a network of its own, each container with files and process ids of its own. It needs root.

Usage:
  kube-node --kubeconfig FILE --name NAME --images MAP.yaml [flags]

MAP.yaml has for each image's repository, without tag or digest, what stands in for the image:
  registry.example.com/crescendo-controller:
    path: /path/to/programs            # goes to the front of PATH
    entrypoint: [crescendo-controller] # run where a container has no command

Flags:
`

func parse(arguments []string) (*options, error) {
	o := &options{}
	flags := pflag.NewFlagSet("kube-node", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage, flags.FlagUsages()) }
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "file that says how to reach the API, with the rights of an administrator")
	flags.StringVar(&o.name, "name", "", "name of the node")
	flags.StringVar(&o.images, "images", "", "file that maps images to folders of programs")
	flags.IntVar(&o.gpus, "gpus", 0, "number of nvidia.com/gpu that the node says it has; there are none behind it")
	flags.StringToStringVar(&o.labels, "labels", nil, "labels of the node, k=v,...")
	flags.StringToStringVar(&o.capacity, "capacity", map[string]string{"cpu": "64", "memory": "256Gi", "ephemeral-storage": "2Ti", "pods": "200"},
		"what the node says it has; nothing is held to it")
	flags.StringVar(&o.state, "state", "", "folder for what belongs to pods; emptied at start and end (default /run/kube-node/NAME)")
	flags.StringVar(&o.volumes, "volumes", "", "folder for the volumes of claims, which stay when the node ends (default STATE-volumes)")
	flags.StringVar(&o.bridge, "bridge", "kube-node", "name of the bridge that connects the pods; all nodes of a cluster have the same")
	flags.StringVar(&o.network, "network", "10.244.0.0/16", "addresses of the bridge; each node takes a /24 of them")
	flags.DurationVar(&o.stopGrace, "stop-grace", 10*time.Second, "how long pods may take to end when the node ends")
	flags.BoolVar(&o.debug, "debug", false, "say more")
	if err := flags.Parse(arguments); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("%q is no flag", flags.Arg(0))
	}
	for flag, value := range map[string]string{"kubeconfig": o.kubeconfig, "name": o.name, "images": o.images} {
		if value == "" {
			return nil, fmt.Errorf("--%s is required", flag)
		}
	}
	return o, o.complete()
}

// complete checks the flags and fills in what follows from others.
func (o *options) complete() error {
	if problems := validation.IsDNS1123Subdomain(o.name); len(problems) > 0 {
		return fmt.Errorf("--name %q: %s", o.name, strings.Join(problems, "; "))
	}
	if o.gpus < 0 {
		return fmt.Errorf("--gpus %d is less than none", o.gpus)
	}
	if _, err := netip.ParsePrefix(o.network); err != nil {
		return fmt.Errorf("--network: %w", err)
	}
	if o.state == "" {
		o.state = filepath.Join("/run/kube-node", o.name)
	}
	if o.volumes == "" {
		o.volumes = strings.TrimSuffix(o.state, "/") + "-volumes"
	}
	for _, path := range []*string{&o.state, &o.volumes, &o.images, &o.kubeconfig} {
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*path = absolute
	}
	return nil
}

// apart is set in the environment of a process that has mounts of its own.
const apart = "KUBE_NODE_APART"

// getApart starts this program again with mounts of its own, so that whatever it mounts ends with it.
func getApart() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("kube-node needs root: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("keep mounts to this program: %w", err)
	}
	return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), apart+"=1"))
}

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case sandbox.PauseArgument:
			if err := sandbox.RunPause(os.Args[2]); err != nil {
				fmt.Fprintln(os.Stderr, "kube-node: sandbox:", err)
				os.Exit(1)
			}
			return
		case sandbox.ContainerArgument:
			sandbox.RunContainer()
		}
	}
	options, err := parse(os.Args[1:])
	if errors.Is(err, pflag.ErrHelp) {
		return
	}
	if err == nil && os.Getenv(apart) == "" {
		err = getApart()
	}
	if err == nil {
		err = os.Unsetenv(apart)
	}
	if err == nil {
		err = serve(options)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kube-node:", err)
		os.Exit(1)
	}
}

func serve(o *options) error {
	level := slog.LevelInfo
	if o.debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("node", o.name)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	return run(ctx, o, log)
}
