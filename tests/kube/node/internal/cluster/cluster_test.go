package cluster

import (
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

func TestAStatusReplacesTheNodesPartAndNoOther(t *testing.T) {
	old := corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u"}, Status: corev1.PodStatus{
		Phase: corev1.PodPending, Reason: "Early", PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}},
		Conditions:        []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: corev1.ConditionFalse}},
		ContainerStatuses: []corev1.ContainerStatus{{Name: "m", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{}}}},
	}}
	status := &corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: "10.0.0.2", PodIPs: []corev1.PodIP{{IP: "10.0.0.2"}},
		Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		ContainerStatuses: []corev1.ContainerStatus{{Name: "m", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}},
	}
	patch, err := statusPatch(&old, status)
	if err != nil {
		t.Fatal(err)
	}
	before, err := json.Marshal(old)
	if err != nil {
		t.Fatal(err)
	}
	after, err := strategicpatch.StrategicMergePatch(before, patch, corev1.Pod{})
	if err != nil {
		t.Fatal(err)
	}
	var got corev1.Pod
	if err := json.Unmarshal(after, &got); err != nil {
		t.Fatal(err)
	}
	if got.UID != "u" || got.Status.Phase != corev1.PodRunning || got.Status.Reason != "" {
		t.Errorf("got %+v", got.Status)
	}
	if len(got.Status.PodIPs) != 1 || got.Status.PodIPs[0].IP != "10.0.0.2" {
		t.Errorf("addresses are %v", got.Status.PodIPs)
	}
	if state := got.Status.ContainerStatuses[0].State; state.Waiting != nil || state.Running == nil {
		t.Errorf("state is %+v", state)
	}
	conditions := map[corev1.PodConditionType]corev1.ConditionStatus{}
	for _, condition := range got.Status.Conditions {
		conditions[condition.Type] = condition.Status
	}
	if len(conditions) != 2 || conditions[corev1.PodScheduled] != corev1.ConditionTrue || conditions[corev1.PodReady] != corev1.ConditionTrue {
		t.Errorf("conditions are %v", conditions)
	}
}
