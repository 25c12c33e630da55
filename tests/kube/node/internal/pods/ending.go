package pods

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

func (w *worker) graceSeconds() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if seconds := w.pod.Spec.TerminationGracePeriodSeconds; seconds != nil {
		return time.Duration(*seconds) * time.Second
	}
	return 30 * time.Second
}

// order has the pod stop within its grace. A second order can only shorten it.
func (w *worker) order(reason, message string, grace time.Duration) {
	w.mu.Lock()
	ends := time.Now().Add(grace)
	switch {
	case w.stop == nil:
		ctx, cancel := context.WithCancel(w.ctx)
		w.stop = &stopOrder{reason: reason, message: message, grace: ctx, expire: cancel, ends: ends, timer: time.AfterFunc(grace, cancel)}
	case ends.Before(w.stop.ends):
		w.stop.ends = ends
		w.stop.timer.Reset(grace)
	}
	w.mu.Unlock()
	w.changed()
}

// stopping is closed when the pod has been ordered to stop.
func (w *worker) stopping() <-chan struct{} {
	ordered := make(chan struct{})
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stop != nil {
		close(ordered)
		return ordered
	}
	// Every order wakes the loop, which asks again.
	return nil
}

// grace is the time that a container has to end while its pod goes on: its probe's or its pod's.
func (w *worker) grace(own *int64) context.Context {
	period := w.graceSeconds()
	if own != nil {
		period = time.Duration(*own) * time.Second
	}
	ctx, cancel := context.WithTimeout(w.ctx, period)
	w.tasks.Go(func() {
		<-ctx.Done()
		cancel()
	})
	return ctx
}

// endContainers ends what runs: first all but sidecars together, then the sidecars, the last one first.
func (w *worker) endContainers() {
	w.mu.Lock()
	stop := w.stop
	w.mu.Unlock()
	if stop == nil {
		// Nothing but sidecars is left.
		w.order("", "", w.graceSeconds())
		w.mu.Lock()
		stop = w.stop
		w.mu.Unlock()
	}
	defer stop.expire()
	var others sync.WaitGroup
	for _, c := range w.containers {
		if c.kind != Sidecar {
			others.Go(func() { w.end(c, stop.grace) })
		}
	}
	others.Wait()
	for i := len(w.containers) - 1; i >= 0; i-- {
		if c := w.containers[i]; c.kind == Sidecar {
			grace, cancel := atLeast(stop.grace, sidecarGrace)
			w.end(c, grace)
			cancel()
		}
	}
}

// atLeast ends when the context does, but not before a time has passed.
func atLeast(ctx context.Context, least time.Duration) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		select {
		case <-time.After(least):
		case <-out.Done():
			return
		}
		select {
		case <-ctx.Done():
			cancel()
		case <-out.Done():
		}
	}()
	return out, cancel
}

// end ends a container, also one that is about to start.
func (w *worker) end(c *container, grace context.Context) {
	for {
		w.mu.Lock()
		r, phase := c.run, c.phase
		w.mu.Unlock()
		if phase != Active {
			return
		}
		if r != nil && !isClosed(r.done) {
			w.kill(c, r, "the pod ends", grace)
			return
		}
		// It is being put together, which has a deadline.
		time.Sleep(20 * time.Millisecond)
	}
}

// tearDown takes away what the pod had on this host.
func (w *worker) tearDown() {
	var problems []error
	if w.volumes != nil {
		problems = append(problems, w.volumes.Close(w.snapshot()))
	}
	w.mu.Lock()
	pause, address := w.pause, w.address
	host := w.pod.Spec.HostNetwork
	w.mu.Unlock()
	if pause != nil {
		pause.Stop()
		if !host {
			w.node.Bridge.Free(address)
		}
	}
	for _, name := range []string{"volumes", "hosts", "hostname", "resolv.conf"} {
		problems = append(problems, removeAll(w.file(name)))
	}
	if err := errors.Join(problems...); err != nil {
		w.log.Warn("something of the pod is left", "error", err)
	}
}

// removeAll removes a folder, but follows no mount that is left in it.
func removeAll(path string) error {
	err := os.RemoveAll(path)
	if errors.Is(err, unix.EBUSY) {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return err
		}
		return os.RemoveAll(path)
	}
	return err
}

// finishStatus records what a pod has become.
func (w *worker) finishStatus() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.over = true
	w.status.sandbox = false
	if stop := w.stop; stop != nil && !w.status.finished {
		w.status.finished, w.status.reason, w.status.message = true, stop.reason, stop.message
		w.status.failed = stop.reason != "" || w.anyFailed()
	}
}

func (w *worker) anyFailed() bool {
	for _, c := range w.containers {
		if c.kind != Sidecar && (c.ended == nil || c.ended.ExitCode != 0) {
			return true
		}
	}
	return false
}
