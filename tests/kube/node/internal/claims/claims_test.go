package claims

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/ptr"
)

func claim(node, size string) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "c", UID: "u"}}
	c.Spec.StorageClassName = ptr.To(Class)
	c.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}
	if node != "" {
		c.Annotations = map[string]string{selectedNode: node}
	}
	return c
}

func TestAClaimIsTheNodesThatItsFirstPodIsOn(t *testing.T) {
	later := &storagev1.StorageClass{VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer)}
	k := &Keeper{Node: "a"}
	for _, c := range []struct {
		claim *corev1.PersistentVolumeClaim
		class *storagev1.StorageClass
		want  bool
	}{
		{claim("", "1Gi"), later, false}, {claim("b", "1Gi"), later, false}, {claim("a", "1Gi"), later, true}, {claim("", "1Gi"), &storagev1.StorageClass{}, true},
	} {
		if got := k.due(c.claim, c.class); got != c.want {
			t.Errorf("%v: due is %v", c.claim.Annotations, got)
		}
	}
	bound := claim("a", "1Gi")
	bound.Spec.VolumeName = "v"
	if k.due(bound, later) {
		t.Error("a bound claim gets another volume")
	}
}

func TestAVolumesLife(t *testing.T) {
	client := fake.NewClientset(claim("a", "1Gi"))
	k := &Keeper{Client: client, Node: "a", Folder: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
	if err := k.EnsureClass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := k.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(k.Folder, "pvc-u")
	if info, err := os.Stat(folder); err != nil || !info.IsDir() {
		t.Fatal(err)
	}
	bound := claim("a", "2Gi")
	bound.Spec.VolumeName, bound.Status.Phase = "pvc-u", corev1.ClaimBound
	bound.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	if err := client.Tracker().Update(corev1.SchemeGroupVersion.WithResource("persistentvolumeclaims"), bound, "n"); err != nil {
		t.Fatal(err)
	}
	if err := k.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	volume, err := client.CoreV1().PersistentVolumes().Get(t.Context(), "pvc-u", metav1.GetOptions{})
	if err != nil || volume.Spec.Capacity.Storage().String() != "2Gi" {
		t.Fatalf("after it grew: %v, %v", volume.Spec.Capacity, err)
	}
	volume.Status.Phase = corev1.VolumeReleased
	if _, err := client.CoreV1().PersistentVolumes().UpdateStatus(t.Context(), volume, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := k.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(folder); !os.IsNotExist(err) {
		t.Errorf("the folder of a released volume is left: %v", err)
	}
}
