package pods

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"crescendo.dev/kube-node/internal/images"
)

// statusParts is what of a pod's status is not in its containers.
type statusParts struct {
	started         metav1.Time
	sandbox         bool
	initialized     bool
	finished        bool
	failed          bool
	over            bool
	reason, message string
	conditions      []corev1.PodCondition
}

func (w *worker) containerID(c *container, r *run) string {
	return fmt.Sprintf("process://%s/%s/%d", w.pod.UID, c.spec.Name, r.process.PID)
}

// buildStatus is the pod's status now. The lock is held.
func (w *worker) buildStatus() *corev1.PodStatus {
	status := &corev1.PodStatus{
		Phase: w.podPhase(), Reason: w.status.reason, Message: w.status.message, StartTime: &w.status.started,
		HostIP: w.node.Address().String(), HostIPs: []corev1.HostIP{{IP: w.node.Address().String()}},
	}
	if w.address.IsValid() {
		status.PodIP = w.address.String()
		status.PodIPs = []corev1.PodIP{{IP: status.PodIP}}
	}
	for _, c := range w.containers {
		if c.kind == Main {
			status.ContainerStatuses = append(status.ContainerStatuses, w.containerStatus(c))
		} else {
			status.InitContainerStatuses = append(status.InitContainerStatuses, w.containerStatus(c))
		}
	}
	status.Conditions = w.conditions(status)
	return status
}

func (w *worker) podPhase() corev1.PodPhase {
	switch {
	case w.status.over && w.status.failed:
		return corev1.PodFailed
	case w.status.over:
		return corev1.PodSucceeded
	}
	for _, c := range w.containers {
		if c.kind == Main && (c.current != nil || c.ended != nil) {
			return corev1.PodRunning
		}
	}
	return corev1.PodPending
}

func (w *worker) containerStatus(c *container) corev1.ContainerStatus {
	status := corev1.ContainerStatus{
		Name: c.spec.Name, Image: c.spec.Image, Ready: c.ready || (c.kind == Init && c.ended != nil && c.ended.ExitCode == 0),
		RestartCount: int32(max(0, c.runs-1)), Started: ptr.To(c.started),
	}
	if image, found := w.node.Images[images.Repository(c.spec.Image)]; found {
		status.ImageID = "process:" + image.Path
	}
	if c.run != nil {
		status.ContainerID = w.containerID(c, c.run)
	}
	if c.before != nil {
		status.LastTerminationState.Terminated = c.before
	}
	switch {
	case c.current != nil:
		status.State.Running = c.current
		if c.ended != nil {
			status.LastTerminationState.Terminated = c.ended
		}
	case c.waiting != nil && !w.status.over:
		status.State.Waiting = c.waiting
		if c.ended != nil {
			status.LastTerminationState.Terminated = c.ended
		}
	case c.ended != nil:
		status.State.Terminated = c.ended
	default:
		status.State.Waiting = &corev1.ContainerStateWaiting{Reason: "PodInitializing"}
	}
	return status
}

// conditions are those that a kubelet sets, with when each last changed. Those of others stay as they are in the API.
func (w *worker) conditions(status *corev1.PodStatus) []corev1.PodCondition {
	containersReady := !w.status.over && w.status.initialized
	for _, c := range w.containers {
		if c.kind != Init && !c.ready {
			containersReady = false
		}
	}
	ready := containersReady
	for _, gate := range w.pod.Spec.ReadinessGates {
		ready = ready && conditionIs(w.pod.Status.Conditions, gate.ConditionType)
	}
	reason, message := "", ""
	if status.Phase == corev1.PodSucceeded {
		reason = "PodCompleted"
	} else if !containersReady {
		reason, message = "ContainersNotReady", "containers with unready status"
	}
	w.setCondition(corev1.PodReadyToStartContainers, w.status.sandbox, "", "")
	w.setCondition(corev1.PodInitialized, w.status.initialized, "", "")
	w.setCondition(corev1.ContainersReady, containersReady, reason, message)
	w.setCondition(corev1.PodReady, ready, reason, message)
	return slices.Clone(w.status.conditions)
}

// ownConditions are those that a kubelet sets.
func ownConditions(all []corev1.PodCondition) []corev1.PodCondition {
	return slices.DeleteFunc(slices.Clone(all), func(condition corev1.PodCondition) bool {
		switch condition.Type {
		case corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady:
			return false
		}
		return true
	})
}

func conditionIs(conditions []corev1.PodCondition, kind corev1.PodConditionType) bool {
	for _, condition := range conditions {
		if condition.Type == kind {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

func (w *worker) setCondition(kind corev1.PodConditionType, holds bool, reason, message string) {
	next := corev1.PodCondition{Type: kind, Status: corev1.ConditionFalse, Reason: reason, Message: message, LastTransitionTime: metav1.Now()}
	if holds {
		next.Status, next.Reason, next.Message = corev1.ConditionTrue, "", ""
	}
	for i := range w.status.conditions {
		old := &w.status.conditions[i]
		if old.Type == kind {
			if old.Status == next.Status {
				next.LastTransitionTime = old.LastTransitionTime
			}
			*old = next
			return
		}
	}
	w.status.conditions = append(w.status.conditions, next)
}

// publication is what the API has been told.
type publication struct {
	dirty chan struct{}
	last  *corev1.PodStatus
	// final is closed when the last status has been told, or nobody is there to tell.
	final chan struct{}
}

func (p *publication) finish() {
	if !isClosed(p.final) {
		close(p.final)
	}
}

// awaitPublished waits until the API knows how the pod ended; not for ever, since it may be gone.
func (w *worker) awaitPublished() {
	select {
	case <-w.published.final:
	case <-w.node.Closing:
		// The API may be gone too: whatever it can be told, it is told soon.
		select {
		case <-w.published.final:
		case <-time.After(closingDeadline):
		}
	}
}

const (
	closingDeadline = 3 * time.Second
	publishRetry    = 500 * time.Millisecond
	publishDeadline = 10 * time.Second
)

// publish tells the API of each change, the newest alone if it is slow.
func (w *worker) publish() {
	for {
		select {
		case <-w.published.dirty:
		case <-w.ctx.Done():
			return
		}
		for {
			err := w.publishOnce()
			if err == nil || w.node.API.IsNotFound(err) {
				break
			}
			w.log.Warn("tell the API of a pod", "error", err)
			select {
			case <-time.After(publishRetry):
			case <-w.ctx.Done():
				return
			}
		}
	}
}

func (w *worker) publishOnce() error {
	ctx, cancel := context.WithTimeout(w.ctx, publishDeadline)
	defer cancel()
	w.mu.Lock()
	pod, status, over := w.pod, w.buildStatus(), w.status.over
	w.mu.Unlock()
	var err error
	if w.published.last == nil || !equality.Semantic.DeepEqual(status, w.published.last) {
		err = w.node.API.SetStatus(ctx, pod, status)
	}
	if err == nil {
		w.published.last = status
	}
	if over && (err == nil || w.node.API.IsNotFound(err)) {
		w.published.finish()
	}
	return err
}
