// Package probes asks containers how they are.
package probes

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Verdict is what answers so far say.
type Verdict int

const (
	// Undecided: too few answers of a kind in a row.
	Undecided Verdict = iota
	Passing
	Failing
)

// State counts the answers to a probe.
type State struct {
	verdict             Verdict
	successes, failures int
	toPass, toFail      int32
}

// NewState begins with a verdict: a container lives until it is known not to, and is not ready until it is known to be.
func NewState(probe *corev1.Probe, begin Verdict) *State {
	return &State{verdict: begin, toPass: orDefault(probe.SuccessThreshold, 1), toFail: orDefault(probe.FailureThreshold, 3)}
}

// Observe takes an answer, and says what holds now and whether that is new.
func (s *State) Observe(ok bool) (now Verdict, changed bool) {
	next := s.verdict
	if ok {
		s.successes, s.failures = s.successes+1, 0
		if s.successes >= int(s.toPass) {
			next = Passing
		}
	} else {
		s.successes, s.failures = 0, s.failures+1
		if s.failures >= int(s.toFail) {
			next = Failing
		}
	}
	changed = next != s.verdict
	s.verdict = next
	return next, changed
}

func orDefault(value, fallback int32) int32 {
	if value > 0 {
		return value
	}
	return fallback
}

// Period is the time between two questions.
func Period(probe *corev1.Probe) time.Duration {
	return time.Duration(orDefault(probe.PeriodSeconds, 10)) * time.Second
}

// Timeout is how long an answer may take.
func Timeout(probe *corev1.Probe) time.Duration {
	return time.Duration(orDefault(probe.TimeoutSeconds, 1)) * time.Second
}
