// Package claims makes volumes for claims of the storage class "process": a folder of the host each.
package claims

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	// Class is the storage class that the node makes if it is not there.
	Class = "process"
	// Provisioner is what a class names whose claims get a folder.
	Provisioner = "kube-node/process"

	selectedNode  = "volume.kubernetes.io/selected-node"
	provisionedBy = "pv.kubernetes.io/provisioned-by"
	defaultClass  = "storageclass.kubernetes.io/is-default-class"
	lookEvery     = 500 * time.Millisecond
	callDeadline  = 10 * time.Second
)

// Keeper makes, grows and removes volumes. Each node has one: a claim that waits for its first pod is that pod's node's, any
// other the first one's that comes.
type Keeper struct {
	Client kubernetes.Interface
	Node   string
	// Folder has one folder a volume.
	Folder string
	Log    *slog.Logger
}

// EnsureClass makes the storage class, and the cluster's default of it if there is none.
func (k *Keeper) EnsureClass(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callDeadline)
	defer cancel()
	classes, err := k.Client.StorageV1().StorageClasses().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list storage classes: %w", err)
	}
	isDefault := "true"
	for _, class := range classes.Items {
		if class.Name == Class {
			return nil
		}
		if class.Annotations[defaultClass] == "true" {
			isDefault = "false"
		}
	}
	later, reclaim, grow := storagev1.VolumeBindingWaitForFirstConsumer, corev1.PersistentVolumeReclaimDelete, true
	_, err = k.Client.StorageV1().StorageClasses().Create(ctx, &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{Name: Class, Annotations: map[string]string{defaultClass: isDefault}},
		Provisioner: Provisioner, VolumeBindingMode: &later, ReclaimPolicy: &reclaim, AllowVolumeExpansion: &grow,
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make the storage class %s: %w", Class, err)
	}
	return nil
}

// Run looks after claims and volumes until the context ends.
func (k *Keeper) Run(ctx context.Context) {
	said := ""
	for {
		problem := ""
		if err := k.look(ctx); err != nil && ctx.Err() == nil {
			problem = err.Error()
		}
		if problem != said && problem != "" {
			k.Log.Warn("look after claims", "error", problem)
		}
		said = problem
		select {
		case <-time.After(lookEvery):
		case <-ctx.Done():
			return
		}
	}
}

func (k *Keeper) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callDeadline)
	defer cancel()
	classes, err := k.Client.StorageV1().StorageClasses().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return fmt.Errorf("list storage classes: %w", err)
	}
	own := map[string]*storagev1.StorageClass{}
	for i := range classes.Items {
		if class := &classes.Items[i]; class.Provisioner == Provisioner {
			own[class.Name] = class
		}
	}
	claims, err := k.Client.CoreV1().PersistentVolumeClaims("").List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return fmt.Errorf("list claims: %w", err)
	}
	var problems []error
	for i := range claims.Items {
		claim := &claims.Items[i]
		class := own[className(claim)]
		switch {
		case class == nil:
		case k.due(claim, class):
			problems = append(problems, k.make(ctx, claim, class))
		case grows(claim):
			problems = append(problems, k.grow(ctx, claim))
		}
	}
	volumes, err := k.Client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return errors.Join(append(problems, fmt.Errorf("list volumes: %w", err))...)
	}
	for i := range volumes.Items {
		if volume := &volumes.Items[i]; released(volume) {
			problems = append(problems, k.remove(ctx, volume))
		}
	}
	return errors.Join(problems...)
}

func className(claim *corev1.PersistentVolumeClaim) string {
	if claim.Spec.StorageClassName != nil {
		return *claim.Spec.StorageClassName
	}
	return ""
}

// due says whether this node is to make the claim's volume.
func (k *Keeper) due(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) bool {
	if claim.Spec.VolumeName != "" || claim.DeletionTimestamp != nil || claim.Spec.Selector != nil {
		return false
	}
	waits := class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
	return !waits || claim.Annotations[selectedNode] == k.Node
}

func volumeName(claim *corev1.PersistentVolumeClaim) string { return "pvc-" + string(claim.UID) }

func (k *Keeper) make(ctx context.Context, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) error {
	folder := filepath.Join(k.Folder, volumeName(claim))
	kind, reclaim := corev1.HostPathDirectory, corev1.PersistentVolumeReclaimDelete
	if class.ReclaimPolicy != nil {
		reclaim = *class.ReclaimPolicy
	}
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: volumeName(claim), Annotations: map[string]string{provisionedBy: Provisioner}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:    corev1.ResourceList{corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes: claim.Spec.AccessModes, VolumeMode: claim.Spec.VolumeMode, StorageClassName: class.Name,
			PersistentVolumeReclaimPolicy: reclaim,
			ClaimRef: &corev1.ObjectReference{
				Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
			PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: folder, Type: &kind}},
		},
	}
	_, err := k.Client.CoreV1().PersistentVolumes().Create(ctx, volume, metav1.CreateOptions{})
	switch {
	case apierrors.IsAlreadyExists(err):
		// Another node's, or ours that the claim is not bound to yet.
		return nil
	case err != nil:
		return fmt.Errorf("make a volume for claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	// Only the node whose volume it became has the folder.
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("folder of claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	k.Log.Info("volume made", "claim", claim.Namespace+"/"+claim.Name, "folder", folder)
	return nil
}

// grows says whether a bound claim asks for more than it has.
func grows(claim *corev1.PersistentVolumeClaim) bool {
	asked, has := claim.Spec.Resources.Requests[corev1.ResourceStorage], claim.Status.Capacity[corev1.ResourceStorage]
	return claim.Status.Phase == corev1.ClaimBound && strings.HasPrefix(claim.Spec.VolumeName, "pvc-") && asked.Cmp(has) > 0
}

func (k *Keeper) grow(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	asked := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	volume, err := k.Client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("volume of claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	if volume.Annotations[provisionedBy] != Provisioner {
		return nil
	}
	if has := volume.Spec.Capacity[corev1.ResourceStorage]; asked.Cmp(has) > 0 {
		volume.Spec.Capacity[corev1.ResourceStorage] = asked
		if _, err := k.Client.CoreV1().PersistentVolumes().Update(ctx, volume, metav1.UpdateOptions{}); err != nil && !apierrors.IsConflict(err) {
			return fmt.Errorf("grow volume %s: %w", volume.Name, err)
		}
	}
	claim = claim.DeepCopy()
	claim.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: asked}
	if _, err := k.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).UpdateStatus(ctx, claim, metav1.UpdateOptions{}); err != nil && !apierrors.IsConflict(err) {
		return fmt.Errorf("grow claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	return nil
}

func released(volume *corev1.PersistentVolume) bool {
	return volume.Annotations[provisionedBy] == Provisioner && volume.Status.Phase == corev1.VolumeReleased &&
		volume.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete && volume.Spec.HostPath != nil
}

// remove deletes a volume that nobody claims any more; nodes of one host see the same folders.
func (k *Keeper) remove(ctx context.Context, volume *corev1.PersistentVolume) error {
	if filepath.Base(volume.Spec.HostPath.Path) != volume.Name {
		return fmt.Errorf("volume %s is at %s, which this node did not make", volume.Name, volume.Spec.HostPath.Path)
	}
	if err := os.RemoveAll(volume.Spec.HostPath.Path); err != nil {
		return fmt.Errorf("remove volume %s: %w", volume.Name, err)
	}
	if err := k.Client.CoreV1().PersistentVolumes().Delete(ctx, volume.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove volume %s: %w", volume.Name, err)
	}
	return nil
}
