package pods

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"

	"crescendo.dev/kube-node/internal/probes"
)

// probe asks a container's probes until the context ends: its startup probe, and when that has passed the two others.
func (w *worker) probe(ctx context.Context, c *container, r *run) {
	if probe := c.spec.StartupProbe; probe != nil {
		passed := w.ask(ctx, c, r, probe, "Startup", probes.Undecided, func(verdict probes.Verdict) bool {
			return verdict == probes.Undecided
		})
		if !passed {
			return
		}
		w.set(c, func() {
			c.started = true
			c.ready = c.spec.ReadinessProbe == nil
		})
	}
	if probe := c.spec.LivenessProbe; probe != nil {
		w.tasks.Go(func() {
			w.ask(ctx, c, r, probe, "Liveness", probes.Passing, func(verdict probes.Verdict) bool {
				return verdict != probes.Failing
			})
		})
	}
	if probe := c.spec.ReadinessProbe; probe != nil {
		w.ask(ctx, c, r, probe, "Readiness", probes.Undecided, func(verdict probes.Verdict) bool {
			w.set(c, func() { c.ready = verdict == probes.Passing })
			return true
		})
	}
}

// ask asks one probe for as long as goOn says so. A startup or liveness probe that fails ends the container. It says whether
// the last verdict was good.
func (w *worker) ask(ctx context.Context, c *container, r *run, probe *corev1.Probe, name string, begin probes.Verdict, goOn func(probes.Verdict) bool) bool {
	state := probes.NewState(probe, begin)
	wait := time.Duration(probe.InitialDelaySeconds) * time.Second
	for {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
		}
		wait = probes.Period(probe)
		err := probes.Ask(ctx, probe, w.target(c, r))
		if ctx.Err() != nil {
			return false
		}
		if err != nil {
			w.event(corev1.EventTypeWarning, "Unhealthy", "%s probe failed: %v", name, err)
		}
		verdict, changed := state.Observe(err == nil)
		if changed {
			w.log.Info("probe", "container", c.spec.Name, "probe", name, "passing", verdict == probes.Passing)
		}
		if !changed || goOn(verdict) {
			continue
		}
		if verdict == probes.Failing {
			w.kill(c, r, name+" probe failed", w.grace(probe.TerminationGracePeriodSeconds))
		}
		return verdict == probes.Passing
	}
}

// set changes a container's state and has it told.
func (w *worker) set(c *container, change func()) {
	w.mu.Lock()
	change()
	w.mu.Unlock()
	w.changed()
}
