package pods

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// told is a pod whose containers were last seen as these.
func told(policy corev1.RestartPolicy, statuses ...corev1.ContainerStatus) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u"}, Spec: corev1.PodSpec{RestartPolicy: policy}}
	for _, status := range statuses {
		pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: status.Name})
	}
	pod.Status.ContainerStatuses = statuses
	return pod
}

func TestANodeThatStartsAnewCountsOn(t *testing.T) {
	running := corev1.ContainerStatus{Name: "m", RestartCount: 2, ContainerID: "process://u/m/1"}
	c := containersOf(told(corev1.RestartPolicyAlways, running))[0]
	if c.phase != Waiting || c.runs != 3 {
		t.Errorf("a container that is to run again has phase %d after %d starts", c.phase, c.runs)
	}
	c = containersOf(told(corev1.RestartPolicyNever, running))[0]
	if c.phase != Exited || c.ended.ExitCode != 137 || c.ended.Reason != "ContainerStatusUnknown" {
		t.Errorf("one that is not to run again has phase %d, %+v", c.phase, c.ended)
	}
	done := corev1.ContainerStatus{Name: "m", ContainerID: "process://u/m/1"}
	done.State.Terminated = &corev1.ContainerStateTerminated{ExitCode: 0, Reason: "Completed"}
	if c = containersOf(told(corev1.RestartPolicyNever, done))[0]; c.phase != Exited || c.ended.ExitCode != 0 {
		t.Errorf("one that had ended has phase %d, %+v", c.phase, c.ended)
	}
	fresh := corev1.ContainerStatus{Name: "m"}
	if c = containersOf(told(corev1.RestartPolicyNever, fresh))[0]; c.phase != Waiting || c.runs != 0 {
		t.Errorf("one that never ran has phase %d after %d starts", c.phase, c.runs)
	}
}

func TestAConditionKeepsItsTimeUntilItChanges(t *testing.T) {
	w := &worker{}
	w.setCondition(corev1.PodReady, false, "ContainersNotReady", "m")
	long := metav1.Unix(1, 0)
	w.status.conditions[0].LastTransitionTime = long
	w.setCondition(corev1.PodReady, false, "ContainersNotReady", "other")
	if got := w.status.conditions[0]; got.LastTransitionTime != long || got.Message != "other" {
		t.Errorf("got %+v", got)
	}
	w.setCondition(corev1.PodReady, true, "ContainersNotReady", "m")
	if got := w.status.conditions[0]; got.LastTransitionTime == long || got.Reason != "" || got.Status != corev1.ConditionTrue {
		t.Errorf("got %+v", got)
	}
	if len(w.status.conditions) != 1 {
		t.Errorf("there are %d conditions", len(w.status.conditions))
	}
}

func TestOnlyAKubeletsConditionsAreItsOwn(t *testing.T) {
	all := []corev1.PodCondition{{Type: corev1.PodScheduled}, {Type: corev1.PodReady}, {Type: corev1.DisruptionTarget}}
	if got := ownConditions(all); len(got) != 1 || got[0].Type != corev1.PodReady {
		t.Errorf("got %+v", got)
	}
	if len(all) != 3 || all[0].Type != corev1.PodScheduled {
		t.Errorf("the pod's own list is %+v now", all)
	}
}
