package pods

import (
	"context"
	"log/slog"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"

	"crescendo.dev/kube-node/internal/images"
	"crescendo.dev/kube-node/internal/network"
	"crescendo.dev/kube-node/internal/sandbox"
	"crescendo.dev/kube-node/internal/volumes"
)

// API is what pods tell Kubernetes.
type API interface {
	// SetStatus replaces what this node says of a pod's status.
	SetStatus(ctx context.Context, pod *corev1.Pod, status *corev1.PodStatus) error
	// Remove takes a pod that has ended out of the API.
	Remove(ctx context.Context, pod *corev1.Pod) error
	IsNotFound(err error) bool
}

// Node is what all pods of a node share.
type Node struct {
	Name    string
	API     API
	Source  volumes.Source
	Images  images.Map
	Spawner *sandbox.Spawner
	Bridge  *network.Bridge
	Events  record.EventRecorder
	Log     *slog.Logger
	// Folder has one folder a pod.
	Folder string
	// Hidden are folders of the host that containers see as empty.
	Hidden []string
	// Closing is closed when the node ends.
	Closing chan struct{}
	// Routes are those that hold now.
	Routes func() []network.Route
}

// Address is the node's own, where its names are served.
func (n *Node) Address() netip.Addr { return n.Bridge.Address() }
