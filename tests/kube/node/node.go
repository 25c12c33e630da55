package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	vknode "github.com/virtual-kubelet/virtual-kubelet/node"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"

	"crescendo.dev/kube-node/internal/claims"
	"crescendo.dev/kube-node/internal/cluster"
	"crescendo.dev/kube-node/internal/images"
	"crescendo.dev/kube-node/internal/network"
	"crescendo.dev/kube-node/internal/pods"
	"crescendo.dev/kube-node/internal/sandbox"
)

const (
	// routesSettle is how long changes of services are gathered before they are applied.
	routesSettle = 50 * time.Millisecond
	leaseSeconds = 40
)

// state is a node's folder, which no other may use at the same time.
type state struct {
	folder string
	lock   *os.File
}

// openState locks the folder and removes what a run that was killed has left in it.
func openState(folder string) (*state, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(folder, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("--state %s: another node uses it", folder)
	}
	s := &state{folder, lock}
	return s, os.RemoveAll(s.pods())
}

func (s *state) pods() string { return filepath.Join(s.folder, "pods") }

func (s *state) blockFile() string { return filepath.Join(s.folder, "block") }

// block is the part of the network that the node had before.
func (s *state) block() int {
	text, err := os.ReadFile(s.blockFile())
	if err != nil {
		return 0
	}
	block, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	return block
}

func (s *state) close() error {
	return errors.Join(os.RemoveAll(s.folder), s.lock.Close())
}

// run is the node's life.
func run(ctx context.Context, o *options, log *slog.Logger) (err error) {
	known, err := images.Load(o.images)
	if err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return fmt.Errorf("--kubeconfig: %w", err)
	}
	config.QPS, config.Burst = 200, 400
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("--kubeconfig: %w", err)
	}
	held, err := openState(o.state)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, held.close()) }()
	prefix, err := netip.ParsePrefix(o.network)
	if err != nil {
		return fmt.Errorf("--network: %w", err)
	}
	bridge, err := network.OpenBridge(o.bridge, prefix, held.block())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bridge.Close()) }()
	if err := os.WriteFile(held.blockFile(), []byte(strconv.Itoa(bridge.Block())), 0o600); err != nil {
		return err
	}
	server, err := client.Discovery().ServerVersion()
	if err != nil {
		return fmt.Errorf("ask the API for its version: %w", err)
	}
	// As a kubelet of the same version, since none may be newer than its API.
	object, err := nodeObject(o, bridge.Address(), server.GitVersion)
	if err != nil {
		return err
	}
	view := cluster.New(client, o.name, object.Status.Allocatable)
	n := &running{options: o, log: log, client: client, cluster: view, bridge: bridge, changed: make(chan struct{}, 1)}
	node := &pods.Node{
		Name: o.name, API: view, Source: view, Images: known, Spawner: sandbox.NewSpawner(), Bridge: bridge, Log: log,
		Folder: held.pods(), Hidden: hidden(o), Closing: make(chan struct{}), Routes: n.routes,
	}
	n.manager = pods.NewManager(node)
	events := record.NewBroadcaster()
	defer events.Shutdown()
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	node.Events = events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: o.name})
	return n.serve(ctx, config, object, node.Closing)
}

// hidden are folders of the host that containers see as empty: an image's are, and the state has other pods' secrets.
func hidden(o *options) []string {
	folders := []string{"/tmp", "/run", "/var/tmp"}
	for _, own := range []string{o.state, o.volumes} {
		inside := false
		for _, folder := range folders {
			inside = inside || strings.HasPrefix(own, folder+"/")
		}
		if !inside {
			folders = append(folders, own)
		}
	}
	return folders
}

// running is a node that serves.
type running struct {
	options *options
	log     *slog.Logger
	client  kubernetes.Interface
	cluster *cluster.Cluster
	bridge  *network.Bridge
	manager *pods.Manager
	api     *apiProxy
	current atomic.Pointer[[]network.Route]
	// changed says that services have.
	changed chan struct{}
}

// routes are those that hold now.
func (n *running) routes() []network.Route {
	if routes := n.current.Load(); routes != nil {
		return *routes
	}
	return nil
}

// serve opens what the node listens on, registers it, and runs pods until the context ends.
func (n *running) serve(ctx context.Context, config *rest.Config, object *corev1.Node, closing chan struct{}) error {
	// Caches and the node's lease go on while pods end.
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	names := network.NewDNS("/etc/resolv.conf")
	if err := names.Listen(n.bridge.Address()); err != nil {
		return err
	}
	api, err := listenForAPI(n.bridge.Address(), config)
	if err != nil {
		return err
	}
	n.api = api
	kubelet, err := n.listenForKubelet(n.bridge.Address())
	if err != nil {
		return err
	}
	object.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(kubelet.port)
	keeper := &claims.Keeper{Client: n.client, Node: n.options.name, Folder: n.options.volumes, Log: n.log}
	if err := keeper.EnsureClass(ctx); err != nil {
		return err
	}
	registration, err := vknode.NewNodeController(vknode.NaiveNodeProvider{}, object, n.client.CoreV1().Nodes(),
		vknode.WithNodeEnableLeaseV1(n.client.CoordinationV1().Leases(corev1.NamespaceNodeLease), leaseSeconds))
	if err != nil {
		return fmt.Errorf("register the node: %w", err)
	}
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()
	ended := make(chan error, 5)
	for name, task := range map[string]func() error{
		"names":        func() error { return names.Run(inner) },
		"kubelet":      func() error { return kubelet.run(inner) },
		"API proxy":    func() error { return api.run(inner) },
		"registration": func() error { return registration.Run(inner) },
	} {
		tasks.Go(func() {
			if err := task(); err != nil {
				ended <- fmt.Errorf("%s: %w", name, err)
			}
		})
	}
	tasks.Go(func() { keeper.Run(inner) })
	tasks.Go(func() { n.followServices(inner, names) })
	if err := n.cluster.Start(inner, cluster.Handlers{Pod: n.manager.Sync, PodGone: n.podGone, Services: n.servicesChanged}); err != nil {
		return err
	}
	n.log.Info("node runs", "address", n.bridge.Address(), "pods", n.bridge.PodNetwork())
	select {
	case err = <-ended:
	case <-ctx.Done():
	}
	n.log.Info("node ends")
	close(closing)
	n.manager.Close(n.options.stopGrace)
	return err
}

func (n *running) podGone(pod *corev1.Pod) {
	n.cluster.ForgetTokens(pod)
	n.manager.Forget(pod)
}

func (n *running) servicesChanged() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// followServices keeps names and routes as services are.
func (n *running) followServices(ctx context.Context, names *network.DNS) {
	for {
		select {
		case <-n.changed:
		case <-ctx.Done():
			return
		}
		services, slices, err := n.cluster.ServicesNow()
		if err != nil {
			n.log.Warn("list services", "error", err)
			continue
		}
		names.Set(network.Names(services, slices))
		routes := network.Routes(services, slices)
		n.api.route(services, routes)
		if old := n.current.Load(); old == nil || !network.SameRoutes(*old, routes) {
			n.current.Store(&routes)
			n.manager.Reroute(routes)
		}
		select {
		case <-time.After(routesSettle):
		case <-ctx.Done():
			return
		}
	}
}
