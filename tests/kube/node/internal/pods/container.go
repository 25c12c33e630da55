package pods

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"crescendo.dev/kube-node/internal/env"
	"crescendo.dev/kube-node/internal/images"
	"crescendo.dev/kube-node/internal/probes"
	"crescendo.dev/kube-node/internal/sandbox"
	"crescendo.dev/kube-node/internal/volumes"
)

const (
	// messageLimit is how much of a termination message is told.
	messageLimit = 4096
	// configRetry is how long a container waits whose configuration is not there.
	configRetry = 2 * time.Second
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// container is one container of a pod through all its starts. Its fields are guarded by the worker's lock.
type container struct {
	spec *corev1.Container
	kind Kind

	phase   Phase
	started bool
	ready   bool
	// runs counts the starts.
	runs      int
	notBefore time.Time
	backOff   time.Duration
	waiting   *corev1.ContainerStateWaiting
	current   *corev1.ContainerStateRunning
	ended     *corev1.ContainerStateTerminated
	before    *corev1.ContainerStateTerminated
	run       *run
}

// run is one start of a container.
type run struct {
	folder  string
	process *sandbox.Process
	spec    sandbox.Container
	// cancel ends its probes.
	cancel context.CancelFunc
	// done is closed when it has ended and the worker knows.
	done chan struct{}
	kill sync.Once
}

func (c *container) view() View {
	view := View{Name: c.spec.Name, Kind: c.kind, Phase: c.phase, Started: c.started, NotBefore: c.notBefore}
	if c.ended != nil {
		view.Code = int(c.ended.ExitCode)
	}
	return view
}

// logPath is where a start of a container is logged.
func (w *worker) logPath(name string, number int) string {
	return filepath.Join(w.folder, "containers", name, fmt.Sprintf("%d.log", number))
}

// start runs a container until its command runs, and leaves a goroutine that waits for its end.
func (w *worker) start(c *container) {
	w.mu.Lock()
	number := c.runs
	w.mu.Unlock()
	r, log, err := w.launch(c, number)
	if err != nil {
		w.notStarted(c, err)
		return
	}
	ctx, cancel := context.WithCancel(w.ctx)
	w.mu.Lock()
	r.cancel = cancel
	if c.ended != nil {
		c.before = c.ended
	}
	c.run, c.waiting, c.ended = r, nil, nil
	c.runs++
	c.current = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(r.process.Started)}
	c.started = c.spec.StartupProbe == nil
	c.ready = c.spec.ReadinessProbe == nil && c.started
	w.mu.Unlock()
	w.event(corev1.EventTypeNormal, "Started", "Started container %s", c.spec.Name)
	w.changed()
	w.tasks.Go(func() { w.awaitEnd(c, r, log) })
	w.tasks.Go(func() { w.watch(ctx, c, r) })
}

// watch runs the hook after the start, and then the probes.
func (w *worker) watch(ctx context.Context, c *container, r *run) {
	if hooks := c.spec.Lifecycle; hooks != nil && hooks.PostStart != nil {
		if _, err := w.hook(ctx, c, r, hooks.PostStart); err != nil && ctx.Err() == nil {
			w.event(corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed: %v", err)
			w.kill(c, r, "FailedPostStartHook", w.grace(nil))
			return
		}
	}
	w.probe(ctx, c, r)
}

// launch puts a container together and starts it.
func (w *worker) launch(c *container, number int) (*run, *logs, error) {
	pod := w.snapshot()
	image, err := w.node.Images.Find(c.spec.Image)
	if err != nil {
		return nil, nil, &configError{"ErrImagePull", err}
	}
	spec, err := w.containerSpec(pod, c.spec, image)
	if err != nil {
		return nil, nil, &configError{"CreateContainerConfigError", err}
	}
	r := &run{folder: filepath.Join(w.folder, "containers", c.spec.Name, fmt.Sprint(number)), done: make(chan struct{})}
	spec.Root = r.folder
	if err := os.MkdirAll(r.folder, 0o755); err != nil {
		return nil, nil, &configError{"CreateContainerError", err}
	}
	mounts, err := w.ownFiles(c.spec, r.folder)
	if err != nil {
		return nil, nil, &configError{"CreateContainerError", err}
	}
	spec.Mounts = append(mounts, spec.Mounts...)
	log, err := OpenLog(w.logPath(c.spec.Name, number))
	if err != nil {
		return nil, nil, &configError{"CreateContainerError", err}
	}
	out := &logs{log, log.Stream("stdout"), log.Stream("stderr")}
	process, err := w.node.Spawner.StartContainer(w.ctx, spec, out.out, out.err)
	if err != nil {
		// Why it failed is said in its place.
		return nil, nil, errors.Join(err, out.close())
	}
	r.process, r.spec = process, *spec
	return r, out, nil
}

type logs struct {
	log      *Log
	out, err *LogStream
}

func (l *logs) close() error { return errors.Join(l.out.Flush(), l.err.Flush(), l.log.Close()) }

// configError says why a container cannot be made yet, with the word that its status has for it.
type configError struct {
	reason string
	cause  error
}

func (e *configError) Error() string { return e.cause.Error() }

func (w *worker) containerSpec(pod *corev1.Pod, c *corev1.Container, image images.Image) (*sandbox.Container, error) {
	environment, err := env.Resolve(pod, c, w.node.Source)
	if err != nil {
		return nil, err
	}
	command, err := images.Command(image, environment.ExpandAll(c.Command), environment.ExpandAll(c.Args))
	if err != nil {
		return nil, err
	}
	user, err := sandbox.UserOf(pod.Spec.SecurityContext, c.SecurityContext)
	if err != nil {
		return nil, err
	}
	mounts, err := w.volumes.Mounts(c, environment)
	if err != nil {
		return nil, err
	}
	programs, err := image.Folders()
	if err != nil {
		return nil, err
	}
	return &sandbox.Container{
		Sandbox:    w.pause.PID,
		Programs:   programs,
		Hidden:     w.node.Hidden,
		Mounts:     append(mounts, volumes.Mount{Source: image.Path, Target: images.Inside, ReadOnly: true}),
		ReadOnly:   c.SecurityContext != nil && c.SecurityContext.ReadOnlyRootFilesystem != nil && *c.SecurityContext.ReadOnlyRootFilesystem,
		Command:    command,
		Env:        withDefaults(environment, w.hostname),
		WorkingDir: c.WorkingDir,
		User:       user,
	}, nil
}

// withDefaults adds what every container has: the image's folder in front of PATH, a host name and a home.
func withDefaults(environment *env.Environment, hostname string) []string {
	path, found := environment.Lookup("PATH")
	if !found {
		path = defaultPath
	}
	out := []string{"PATH=" + images.Inside + ":" + path}
	for name, value := range map[string]string{"HOSTNAME": hostname, "HOME": "/"} {
		if _, found := environment.Lookup(name); !found {
			out = append(out, name+"="+value)
		}
	}
	for _, entry := range environment.List() {
		if !strings.HasPrefix(entry, "PATH=") {
			out = append(out, entry)
		}
	}
	return out
}

// ownFiles are the files that every container of a pod sees beside its volumes.
func (w *worker) ownFiles(c *corev1.Container, folder string) ([]volumes.Mount, error) {
	message := filepath.Join(folder, "termination")
	if err := os.WriteFile(message, nil, 0o666); err != nil {
		return nil, err
	}
	if err := os.Chmod(message, 0o666); err != nil {
		return nil, err
	}
	mounts := []volumes.Mount{
		{Source: w.file("hosts"), Target: "/etc/hosts"},
		{Source: w.file("resolv.conf"), Target: "/etc/resolv.conf"},
		{Source: w.file("hostname"), Target: "/etc/hostname"},
	}
	if c.TerminationMessagePath != "" {
		mounts = append(mounts, volumes.Mount{Source: message, Target: c.TerminationMessagePath})
	}
	return mounts, nil
}

// notStarted records a container that did not come to run: what it lacks may come, a command that cannot run counts as ended.
func (w *worker) notStarted(c *container, err error) {
	reason, message := "RunContainerError", err.Error()
	var config *configError
	var start *sandbox.StartError
	w.mu.Lock()
	switch {
	case errors.As(err, &config):
		reason = config.reason
		c.phase, c.notBefore = Waiting, time.Now().Add(configRetry)
		if c.ended != nil {
			c.phase = Exited
		}
	case errors.As(err, &start):
		at := metav1.Now()
		if c.ended != nil {
			c.before = c.ended
		}
		c.ended = &corev1.ContainerStateTerminated{ExitCode: 128, Reason: "StartError", Message: message, StartedAt: at, FinishedAt: at}
		c.phase = Exited
		c.runs++
		c.backOff = BackOff(c.runs-1, 0, c.backOff)
		c.notBefore = at.Add(max(c.backOff, time.Second))
	default:
		c.phase, c.notBefore = Waiting, time.Now().Add(configRetry)
	}
	c.waiting = &corev1.ContainerStateWaiting{Reason: reason, Message: message}
	w.mu.Unlock()
	w.event(corev1.EventTypeWarning, "Failed", "Error: %s: %s", reason, message)
	w.changed()
}

// awaitEnd waits for the end of a start and records it.
func (w *worker) awaitEnd(c *container, r *run, log *logs) {
	exit := r.process.Exit()
	r.cancel()
	if err := log.close(); err != nil {
		w.log.Warn("a container's log is not whole", "container", c.spec.Name, "error", err)
	}
	ended := &corev1.ContainerStateTerminated{
		ExitCode: int32(exit.Code), Signal: int32(exit.Signal), Reason: "Completed", ContainerID: w.containerID(c, r),
		StartedAt: metav1.NewTime(r.process.Started), FinishedAt: metav1.NewTime(exit.At),
	}
	if exit.Code != 0 {
		ended.Reason = "Error"
	}
	message, err := w.terminationMessage(c, r, exit.Code)
	if err != nil {
		w.log.Warn("read a termination message", "container", c.spec.Name, "error", err)
	}
	ended.Message = message
	// What it wrote over the host's files goes with it.
	if err := os.RemoveAll(r.folder); err != nil {
		w.log.Warn("remove a container's folder", "container", c.spec.Name, "error", err)
	}
	w.mu.Lock()
	c.phase, c.started, c.ready, c.current = Exited, false, false, nil
	c.ended = ended
	c.backOff = BackOff(c.runs-1, exit.At.Sub(r.process.Started), c.backOff)
	c.notBefore = exit.At.Add(c.backOff)
	c.waiting = nil
	w.mu.Unlock()
	close(r.done)
	w.log.Info("container ended", "container", c.spec.Name, "code", exit.Code)
	w.changed()
}

func (w *worker) terminationMessage(c *container, r *run, code int) (string, error) {
	file, err := os.Open(filepath.Join(r.folder, "termination"))
	if err != nil {
		return "", err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, messageLimit))
	if err != nil || len(text) > 0 || code == 0 || c.spec.TerminationMessagePolicy != corev1.TerminationMessageFallbackToLogsOnError {
		return string(text), err
	}
	ended := make(chan struct{})
	close(ended)
	var tail strings.Builder
	w.mu.Lock()
	path := w.logPath(c.spec.Name, c.runs-1)
	w.mu.Unlock()
	err = ReadLog(w.ctx, path, ReadOptions{Tail: 80}, ended, &tail)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	message := tail.String()
	return message[max(0, len(message)-2048):], err
}

// kill ends a start: the hook before the stop, SIGTERM, and SIGKILL when the context ends. It returns when it has ended. Who
// comes second, with less patience, ends it sooner.
func (w *worker) kill(c *container, r *run, why string, grace context.Context) {
	w.tasks.Go(func() { r.kill.Do(func() { w.askToEnd(c, r, why, grace) }) })
	select {
	case <-r.process.Done():
	case <-grace.Done():
		w.log.Info("the grace is over: a container is killed", "container", c.spec.Name)
		if err := r.process.Signal(unix.SIGKILL); err != nil {
			w.log.Warn("kill a container", "container", c.spec.Name, "error", err)
		}
	}
	<-r.done
}

func (w *worker) askToEnd(c *container, r *run, why string, grace context.Context) {
	w.event(corev1.EventTypeNormal, "Killing", "Stopping container %s: %s", c.spec.Name, why)
	if hooks := c.spec.Lifecycle; hooks != nil && hooks.PreStop != nil {
		if _, err := w.hook(grace, c, r, hooks.PreStop); err != nil {
			w.event(corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed: %v", err)
		}
	}
	if err := r.process.Signal(w.stopSignal(c)); err != nil {
		w.log.Warn("end a container", "container", c.spec.Name, "error", err)
	}
}

func (w *worker) stopSignal(c *container) unix.Signal {
	if hooks := c.spec.Lifecycle; hooks != nil && hooks.StopSignal != nil {
		if number := unix.SignalNum(string(*hooks.StopSignal)); number != 0 {
			return number
		}
	}
	return unix.SIGTERM
}

// hook does what a container has to do after its start or before its end.
func (w *worker) hook(ctx context.Context, c *container, r *run, handler *corev1.LifecycleHandler) (string, error) {
	if handler.Sleep != nil {
		select {
		case <-time.After(time.Duration(handler.Sleep.Seconds) * time.Second):
		case <-r.process.Done():
		case <-ctx.Done():
		}
		return "", nil
	}
	return probes.Do(ctx, handler, w.target(c, r))
}

func (w *worker) target(c *container, r *run) probes.Target {
	return probes.Target{
		Address: w.address.String(),
		Ports:   c.spec.Ports,
		Run: func(ctx context.Context, line []string) (string, error) {
			return runInside(ctx, r, line)
		},
	}
}
