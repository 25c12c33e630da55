package pods

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"crescendo.dev/kube-node/internal/network"
	"crescendo.dev/kube-node/internal/sandbox"
	"crescendo.dev/kube-node/internal/volumes"
)

const (
	// setupRetry is how long a pod waits whose volumes or sandbox cannot be made yet.
	setupRetry = time.Second
	// refreshEvery is how often the files of ConfigMaps, Secrets and tokens are brought up to date.
	refreshEvery = 2 * time.Second
	// sidecarGrace is what a sidecar has at least after the others have ended.
	sidecarGrace = 2 * time.Second
)

// worker runs one pod, from its start to its end.
type worker struct {
	node   *Node
	log    *slog.Logger
	folder string
	// ctx ends when everything of the pod has to, at once.
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	wake   chan struct{}
	// done is closed when nothing of the pod is left.
	done chan struct{}

	// Written once, before any container starts.
	volumes  *volumes.Pod
	pause    *sandbox.Pause
	address  netip.Addr
	hostname string

	mu         sync.Mutex
	pod        *corev1.Pod
	containers []*container
	status     statusParts
	stop       *stopOrder
	published  publication
}

// stopOrder is why and how fast a pod is to end.
type stopOrder struct {
	reason, message string
	// grace ends when the pod has to have ended.
	grace  context.Context
	expire context.CancelFunc
	timer  *time.Timer
	ends   time.Time
}

func newWorker(node *Node, pod *corev1.Pod) *worker {
	ctx, cancel := context.WithCancel(context.Background())
	w := &worker{
		node: node, log: node.Log.With("pod", pod.Namespace+"/"+pod.Name), folder: filepath.Join(node.Folder, string(pod.UID)),
		ctx: ctx, cancel: cancel, wake: make(chan struct{}, 1), done: make(chan struct{}), pod: pod.DeepCopy(),
		hostname: hostname(pod),
	}
	w.containers = containersOf(w.pod)
	w.status.started = metav1.Now()
	w.status.conditions = ownConditions(pod.Status.Conditions)
	if pod.Status.StartTime != nil {
		w.status.started = *pod.Status.StartTime
	}
	w.published = publication{dirty: make(chan struct{}, 1), final: make(chan struct{})}
	return w
}

// containersOf are a pod's containers in the order in which they start. A node that starts anew goes on counting restarts.
func containersOf(pod *corev1.Pod) []*container {
	told := map[string]*corev1.ContainerStatus{}
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for i := range list {
			told[list[i].Name] = &list[i]
		}
	}
	var out []*container
	add := func(spec *corev1.Container, kind Kind) {
		c := &container{spec: spec, kind: kind, waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}
		if status := told[spec.Name]; status != nil && status.ContainerID != "" {
			c.remember(status, pod.Spec.RestartPolicy)
		}
		out = append(out, c)
	}
	for i := range pod.Spec.InitContainers {
		spec, kind := &pod.Spec.InitContainers[i], Init
		if spec.RestartPolicy != nil && *spec.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			kind = Sidecar
		}
		add(spec, kind)
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i], Main)
	}
	return out
}

// remember takes up what was told of a container that an earlier run of this node has started. What ran then has ended.
func (c *container) remember(status *corev1.ContainerStatus, policy corev1.RestartPolicy) {
	c.runs = int(status.RestartCount) + 1
	if policy != corev1.RestartPolicyNever || c.kind == Sidecar {
		return
	}
	c.phase, c.waiting, c.ended = Exited, nil, status.State.Terminated
	if c.ended == nil {
		c.ended = &corev1.ContainerStateTerminated{
			ExitCode: 137, Reason: "ContainerStatusUnknown", Message: "The container could not be located when the node started again",
			FinishedAt: metav1.Now(), ContainerID: status.ContainerID,
		}
	}
}

func hostname(pod *corev1.Pod) string {
	name := pod.Name
	if pod.Spec.Hostname != "" {
		name = pod.Spec.Hostname
	}
	return name[:min(len(name), 63)]
}

func (w *worker) snapshot() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	pod := w.pod.DeepCopy()
	pod.Status.HostIP = w.node.Address().String()
	if w.address.IsValid() {
		pod.Status.PodIP = w.address.String()
	}
	return pod
}

func (w *worker) file(name string) string { return filepath.Join(w.folder, name) }

func (w *worker) event(kind, reason, format string, values ...any) {
	w.mu.Lock()
	pod := w.pod
	w.mu.Unlock()
	w.node.Events.Eventf(pod, kind, reason, format, values...)
}

// changed has the plan and the status looked at again.
func (w *worker) changed() {
	poke(w.wake)
	poke(w.published.dirty)
}

// poke has somebody look who may look already.
func poke(signal chan struct{}) {
	select {
	case signal <- struct{}{}:
	default:
	}
}

// run is the life of the pod.
func (w *worker) run() {
	defer close(w.done)
	w.tasks.Go(w.publish)
	w.changed()
	if w.setUp() {
		w.tend()
	}
	w.endContainers()
	w.tearDown()
	w.finishStatus()
	w.changed()
	w.awaitPublished()
	w.cancel()
	w.tasks.Wait()
}

// setUp makes the volumes and the sandbox, and tries again until it can or the pod has to stop.
func (w *worker) setUp() bool {
	said := ""
	for {
		err := w.trySetUp()
		if err == nil {
			return true
		}
		if err.Error() != said {
			said = err.Error()
			reason := "FailedCreatePodSandBox"
			var setup *mountError
			if errors.As(err, &setup) {
				reason = "FailedMount"
			}
			w.event(corev1.EventTypeWarning, reason, "%s", said)
			w.log.Warn("the pod cannot start yet", "error", err)
		}
		select {
		case <-time.After(setupRetry):
		case <-w.wake:
		}
		if isClosed(w.stopping()) || w.pastDeadline() {
			return false
		}
	}
}

type mountError struct{ cause error }

func (e *mountError) Error() string { return e.cause.Error() }

func (w *worker) trySetUp() error {
	pod := w.snapshot()
	if err := unsupported(pod); err != nil {
		return err
	}
	if err := os.MkdirAll(w.folder, 0o755); err != nil {
		return err
	}
	if w.volumes == nil {
		w.volumes = volumes.NewPod(w.file("volumes"), w.node.Source)
	}
	if w.pause == nil {
		if err := w.startSandbox(pod); err != nil {
			return err
		}
	}
	// Files of the downward API may have the pod's address, which is known now.
	if err := w.volumes.Prepare(w.ctx, w.snapshot()); err != nil {
		return &mountError{err}
	}
	return nil
}

// unsupported names what a pod asks for that this node cannot give.
func unsupported(pod *corev1.Pod) error {
	switch spec := pod.Spec; {
	case spec.ShareProcessNamespace != nil && *spec.ShareProcessNamespace:
		return fmt.Errorf("shareProcessNamespace: each container has process ids of its own on this node")
	case spec.HostPID || spec.HostIPC:
		return fmt.Errorf("hostPID and hostIPC: pods see no processes of the host on this node")
	}
	return nil
}

func (w *worker) startSandbox(pod *corev1.Pod) error {
	pause, err := w.node.Spawner.StartPause(w.ctx, w.hostname, pod.Spec.HostNetwork)
	if err != nil {
		return err
	}
	address := w.node.Address()
	if !pod.Spec.HostNetwork {
		address, err = w.node.Bridge.Take()
		if err == nil {
			err = w.node.Bridge.Connect(pause.PID, address)
			if err == nil {
				err = network.Apply(pause.PID, w.node.Routes())
			}
			if err != nil {
				w.node.Bridge.Free(address)
			}
		}
		if err != nil {
			pause.Stop()
			return err
		}
	}
	w.mu.Lock()
	w.pause, w.address = pause, address
	w.status.sandbox = true
	w.mu.Unlock()
	if err := w.writeOwnFiles(pod, address); err != nil {
		return err
	}
	w.changed()
	return nil
}

// tend runs the containers until the pod has finished or has to stop.
func (w *worker) tend() {
	refresh := time.NewTicker(refreshEvery)
	defer refresh.Stop()
	for {
		if isClosed(w.stopping()) {
			return
		}
		w.mu.Lock()
		plan := Next(w.pod.Spec.RestartPolicy, w.views(), time.Now())
		w.status.initialized = plan.Initialized
		if plan.Finished {
			w.status.finished, w.status.failed = true, plan.Failed
		}
		for _, name := range plan.Start {
			c := w.named(name)
			c.phase = Active
			w.tasks.Go(func() { w.start(c) })
		}
		w.sayBackOff()
		w.mu.Unlock()
		if plan.Finished || w.pastDeadline() {
			return
		}
		select {
		case <-w.wake:
		case <-until(plan.Wake):
		case <-w.untilDeadline():
		case <-w.pause.Ended():
			w.order("", "the sandbox ended", 0)
			return
		case <-refresh.C:
			if err := w.volumes.Refresh(w.ctx, w.snapshot()); err != nil {
				w.log.Debug("volumes stay as they are", "error", err)
			}
		}
	}
}

func until(at time.Time) <-chan time.Time {
	if at.IsZero() {
		return nil
	}
	return time.After(time.Until(at))
}

// sayBackOff puts what a container waits for into its status. The lock is held.
func (w *worker) sayBackOff() {
	for _, c := range w.containers {
		if c.phase == Exited && c.waiting == nil && c.notBefore.After(time.Now()) && c.again(w.pod.Spec.RestartPolicy) {
			c.waiting = &corev1.ContainerStateWaiting{
				Reason:  "CrashLoopBackOff",
				Message: fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)", c.backOff, c.spec.Name, w.pod.Name, w.pod.Namespace, w.pod.UID),
			}
			w.node.Events.Eventf(w.pod, corev1.EventTypeWarning, "BackOff", "Back-off restarting failed container %s", c.spec.Name)
			poke(w.published.dirty)
		}
	}
}

// again says whether a container that has exited is to run again.
func (c *container) again(policy corev1.RestartPolicy) bool {
	if c.kind == Sidecar {
		return true
	}
	failed := c.ended != nil && c.ended.ExitCode != 0
	return policy == corev1.RestartPolicyOnFailure && failed || policy == corev1.RestartPolicyAlways && (c.kind == Main || failed)
}

func (w *worker) views() []View {
	views := make([]View, 0, len(w.containers))
	for _, c := range w.containers {
		views = append(views, c.view())
	}
	return views
}

func (w *worker) named(name string) *container {
	for _, c := range w.containers {
		if c.spec.Name == name {
			return c
		}
	}
	return nil
}

func (w *worker) deadline() (time.Time, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if seconds := w.pod.Spec.ActiveDeadlineSeconds; seconds != nil {
		return w.status.started.Add(time.Duration(*seconds) * time.Second), true
	}
	return time.Time{}, false
}

func (w *worker) untilDeadline() <-chan time.Time {
	at, set := w.deadline()
	if !set {
		return nil
	}
	return time.After(time.Until(at))
}

// pastDeadline ends a pod that has been active for too long.
func (w *worker) pastDeadline() bool {
	at, set := w.deadline()
	if !set || time.Now().Before(at) {
		return false
	}
	w.order("DeadlineExceeded", "Pod was active on the node longer than the specified deadline", w.graceSeconds())
	return true
}
