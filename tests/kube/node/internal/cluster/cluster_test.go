package cluster

import (
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

func TestAStatusIsNotForALaterPodOfTheName(t *testing.T) {
	pod := func(uid string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "p", UID: types.UID(uid)}}
	}
	client := fake.NewClientset(pod("later"))
	client.PrependReactor("patch", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewInvalid(schema.GroupKind{Kind: "Pod"}, "p", nil)
	})
	c := New(client, "node", nil)
	if err := c.SetStatus(t.Context(), pod("earlier"), &corev1.PodStatus{}); !c.IsNotFound(err) {
		t.Errorf("of the earlier pod: %v", err)
	}
	if err := c.SetStatus(t.Context(), pod("later"), &corev1.PodStatus{}); err == nil || c.IsNotFound(err) {
		t.Errorf("of the pod that is there: %v", err)
	}
}

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
