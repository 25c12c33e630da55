package pods

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"crescendo.dev/kube-node/internal/network"
	"crescendo.dev/kube-node/internal/sandbox"
)

const (
	removeRetry    = 500 * time.Millisecond
	removeDeadline = 10 * time.Second
)

// Manager has a worker for each pod of the node.
type Manager struct {
	node    *Node
	mu      sync.Mutex
	workers map[types.UID]*worker
	tasks   sync.WaitGroup
	closing bool
}

// NewManager has no pods yet.
func NewManager(node *Node) *Manager {
	return &Manager{node: node, workers: map[types.UID]*worker{}}
}

// Sync takes a pod as the API has it now.
func (m *Manager) Sync(pod *corev1.Pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w, known := m.workers[pod.UID]
	if !known {
		m.meet(pod)
		return
	}
	w.mu.Lock()
	w.pod = pod.DeepCopy()
	w.mu.Unlock()
	switch {
	case pod.DeletionTimestamp == nil:
		w.changed()
	case isClosed(w.done):
		m.tasks.Go(func() { m.remove(pod) })
	default:
		w.order("", "", deletionGrace(pod))
	}
}

// meet takes up a pod that the node does not run. The lock is held.
func (m *Manager) meet(pod *corev1.Pod) {
	ended := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	switch {
	case pod.DeletionTimestamp != nil:
		m.tasks.Go(func() { m.remove(pod) })
		return
	case ended || m.closing:
		return
	}
	w := newWorker(m.node, pod)
	m.workers[pod.UID] = w
	m.tasks.Go(func() {
		w.run()
		w.mu.Lock()
		last := w.pod
		w.mu.Unlock()
		if last.DeletionTimestamp != nil {
			m.remove(last)
		}
	})
}

func deletionGrace(pod *corev1.Pod) time.Duration {
	if pod.DeletionGracePeriodSeconds == nil {
		return 0
	}
	return time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second
}

// remove takes a pod out of the API whose processes have ended. If that fails for long, the next look at the pod tries again.
func (m *Manager) remove(pod *corev1.Pod) {
	ctx, cancel := context.WithTimeout(context.Background(), removeDeadline)
	defer cancel()
	for {
		err := m.node.API.Remove(ctx, pod)
		if err == nil || m.node.API.IsNotFound(err) {
			return
		}
		m.node.Log.Warn("take a pod out of the API", "pod", pod.Namespace+"/"+pod.Name, "error", err)
		select {
		case <-time.After(removeRetry):
		case <-ctx.Done():
			return
		case <-m.node.Closing:
			return
		}
	}
}

// Forget takes the end of a pod in the API: what is left of it ends at once.
func (m *Manager) Forget(pod *corev1.Pod) {
	m.mu.Lock()
	w, known := m.workers[pod.UID]
	m.mu.Unlock()
	if !known {
		return
	}
	w.order("", "", 0)
	m.tasks.Go(func() {
		<-w.done
		m.mu.Lock()
		delete(m.workers, pod.UID)
		m.mu.Unlock()
		if err := os.RemoveAll(w.folder); err != nil {
			m.node.Log.Warn("remove a pod's folder", "pod", pod.Namespace+"/"+pod.Name, "error", err)
		}
	})
}

// Close ends every pod within a grace, or its own if that is shorter, and waits for it.
func (m *Manager) Close(grace time.Duration) {
	m.mu.Lock()
	m.closing = true
	var running []*worker
	for _, w := range m.workers {
		running = append(running, w)
	}
	m.mu.Unlock()
	for _, w := range running {
		w.order("Terminated", "Pod was terminated in response to imminent node shutdown.", min(grace, w.graceSeconds()))
	}
	for _, w := range running {
		<-w.done
	}
	m.tasks.Wait()
}

// Reroute has the routes of services hold in every sandbox.
func (m *Manager) Reroute(routes []network.Route) {
	for _, w := range m.all() {
		w.mu.Lock()
		pause, host, over := w.pause, w.pod.Spec.HostNetwork, w.status.over
		w.mu.Unlock()
		if pause == nil || host || over || isClosed(pause.Ended()) {
			continue
		}
		// A sandbox may end meanwhile.
		if err := network.Apply(pause.PID, routes); err != nil && !errors.Is(err, fs.ErrNotExist) {
			w.log.Warn("set the routes of services", "error", err)
		}
	}
}

func (m *Manager) all() []*worker {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*worker, 0, len(m.workers))
	for _, w := range m.workers {
		out = append(out, w)
	}
	return out
}

// Pods are those that the node runs.
func (m *Manager) Pods() []*corev1.Pod {
	var out []*corev1.Pod
	for _, w := range m.all() {
		out = append(out, w.snapshot())
	}
	return out
}

// ErrNotFound says that there is no such pod or container.
var ErrNotFound = errors.New("not found")

// find gives the pod of a name: the one that runs, if one of the same name ends.
func (m *Manager) find(namespace, name string) (*worker, error) {
	var found *worker
	for _, w := range m.all() {
		if pod := w.snapshot(); pod.Namespace == namespace && pod.Name == name {
			if found == nil || isClosed(found.done) || found.snapshot().DeletionTimestamp != nil {
				found = w
			}
		}
	}
	if found == nil {
		return nil, fmt.Errorf("pod %s/%s: %w", namespace, name, ErrNotFound)
	}
	return found, nil
}

// running gives the present start of a container.
func (m *Manager) running(namespace, pod, container string) (*run, error) {
	w, err := m.find(namespace, pod)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.named(container)
	if c == nil {
		return nil, fmt.Errorf("container %q of pod %s/%s: %w", container, namespace, pod, ErrNotFound)
	}
	if c.run == nil || c.current == nil {
		return nil, fmt.Errorf("container %q of pod %s/%s does not run", container, namespace, pod)
	}
	return c.run, nil
}

// Exec runs a program in a container.
func (m *Manager) Exec(ctx context.Context, namespace, pod, container string, line []string, streams Streams) error {
	r, err := m.running(namespace, pod, container)
	if err != nil {
		return err
	}
	if len(line) == 0 {
		return fmt.Errorf("exec: no command")
	}
	return attach(ctx, r, line, streams)
}

// Forward connects a stream with a port of a pod.
func (m *Manager) Forward(ctx context.Context, namespace, pod string, port int32, stream io.ReadWriteCloser) error {
	w, err := m.find(namespace, pod)
	if err != nil {
		return err
	}
	w.mu.Lock()
	pause := w.pause
	w.mu.Unlock()
	if pause == nil {
		return fmt.Errorf("pod %s/%s has no network yet", namespace, pod)
	}
	connection, err := sandbox.Dial(ctx, pause.PID, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return fmt.Errorf("forward port %d: %w", port, err)
	}
	defer connection.Close()
	done := make(chan struct{}, 2)
	for _, ends := range [][2]io.ReadWriter{{connection, stream}, {stream, connection}} {
		go func() {
			copyAll(ends[0], ends[1])
			done <- struct{}{}
		}()
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
	return nil
}

// Logs copies the log of a container, of its present start or the one before.
func (m *Manager) Logs(ctx context.Context, namespace, pod, container string, previous, follow bool, options ReadOptions, out io.Writer) error {
	w, err := m.find(namespace, pod)
	if err != nil {
		return err
	}
	w.mu.Lock()
	c := w.named(container)
	if c == nil {
		w.mu.Unlock()
		return fmt.Errorf("container %q of pod %s/%s: %w", container, namespace, pod, ErrNotFound)
	}
	number, ended := c.runs-1, make(chan struct{})
	if c.run != nil && follow {
		ended = c.run.done
	} else {
		close(ended)
	}
	w.mu.Unlock()
	if previous {
		number--
	}
	err = ReadLog(ctx, w.logPath(container, number), options, ended, out)
	switch {
	case errors.Is(err, io.ErrShortWrite):
		// All that was asked for.
		return nil
	case errors.Is(err, fs.ErrNotExist) && previous:
		return fmt.Errorf("previous terminated container %q in pod %q: %w", container, pod, ErrNotFound)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("container %q in pod %q is waiting to start", container, pod)
	}
	return err
}
