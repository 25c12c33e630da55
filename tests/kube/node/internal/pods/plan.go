// Package pods runs pods: it starts their containers in order, restarts them, asks their probes, ends them, and tells the API.
package pods

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Kind is what a container is for.
type Kind int

const (
	// Init runs to its end before the next one starts.
	Init Kind = iota
	// Sidecar starts in its turn among the init containers, runs beside the others and ends after them.
	Sidecar
	Main
)

// Phase is where a container is in its life.
type Phase int

const (
	// Waiting: it has not run yet.
	Waiting Phase = iota
	// Active: it starts or runs.
	Active
	// Exited: it has run.
	Exited
)

// View is what a plan needs to know of a container.
type View struct {
	Name  string
	Kind  Kind
	Phase Phase
	// Code is how it exited.
	Code int
	// Started: its startup probe has passed, or it has none.
	Started bool
	// NotBefore is when it may start again.
	NotBefore time.Time
}

// Plan is what to do now.
type Plan struct {
	Start []string
	// Wake is when to look again, if nothing happens before; zero for never.
	Wake time.Time
	// Initialized: every init container has ended well, and every sidecar has started.
	Initialized bool
	// Finished: nothing is left to run; sidecars are to be ended.
	Finished bool
	// Failed: a container that is not run again failed.
	Failed bool
}

// Next plans what a pod's containers, in their order, need.
func Next(policy corev1.RestartPolicy, views []View, now time.Time) Plan {
	p := planner{policy: policy, now: now}
	begun := false
	for _, view := range views {
		begun = begun || (view.Kind == Main && view.Phase != Waiting)
	}
	for _, view := range views {
		if view.Kind == Main {
			continue
		}
		if wait := p.beforeMain(view); p.plan.Failed || (wait && !begun) {
			return p.plan
		}
	}
	p.plan.Initialized = true
	p.mains(views)
	return p.plan
}

type planner struct {
	plan   Plan
	policy corev1.RestartPolicy
	now    time.Time
}

func (p *planner) start(view View) {
	if view.NotBefore.After(p.now) {
		if p.plan.Wake.IsZero() || view.NotBefore.Before(p.plan.Wake) {
			p.plan.Wake = view.NotBefore
		}
		return
	}
	p.plan.Start = append(p.plan.Start, view.Name)
}

// beforeMain says whether what comes after an init container or a sidecar has to wait for it.
func (p *planner) beforeMain(view View) (wait bool) {
	switch {
	case view.Phase == Active:
		return view.Kind == Init || !view.Started
	case view.Kind == Init && view.Phase == Exited && view.Code == 0:
		return false
	case view.Kind == Init && view.Phase == Exited && p.policy == corev1.RestartPolicyNever:
		p.plan.Finished, p.plan.Failed = true, true
		return true
	}
	p.start(view)
	return true
}

func (p *planner) mains(views []View) {
	finished, failed := true, false
	for _, view := range views {
		if view.Kind != Main {
			continue
		}
		again := p.policy == corev1.RestartPolicyAlways || (p.policy == corev1.RestartPolicyOnFailure && view.Code != 0)
		switch {
		case view.Phase == Active:
			finished = false
		case view.Phase == Waiting || again:
			finished = false
			p.start(view)
		case view.Code != 0:
			failed = true
		}
	}
	p.plan.Finished, p.plan.Failed = finished, finished && failed
}

const (
	firstBackOff = 10 * time.Second
	maxBackOff   = 5 * time.Minute
	// A container that ran this long begins anew.
	backOffForgotten = 10 * time.Minute
)

// BackOff is how long a container waits before it starts again after it has exited: not at all the first time, then 10
// seconds, and twice as long each time after.
func BackOff(restarts int, ran time.Duration, last time.Duration) (wait time.Duration) {
	switch {
	case restarts == 0 || ran >= backOffForgotten:
		return 0
	case last == 0:
		return firstBackOff
	}
	return min(2*last, maxBackOff)
}
