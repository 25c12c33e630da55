package network

import (
	"encoding/binary"
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// Apply makes connections that start in a sandbox follow the routes. The rules are in the sandbox's own network, so they end
// with it, and the host has none.
func Apply(sandbox int, routes []Route) error {
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", sandbox))
	if err != nil {
		return fmt.Errorf("open the sandbox's network: %w", err)
	}
	defer file.Close()
	connection, err := nftables.New(nftables.WithNetNSFd(int(file.Fd())))
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "services"}
	// Made so that it can be deleted, and made again: all in one step for the kernel.
	connection.AddTable(table)
	connection.DelTable(table)
	connection.AddTable(table)
	translate := connection.AddChain(&nftables.Chain{
		Name: "translate", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	})
	refuse := connection.AddChain(&nftables.Chain{
		Name: "refuse", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
	})
	for _, route := range routes {
		if len(route.Endpoints) == 0 {
			connection.AddRule(&nftables.Rule{Table: table, Chain: refuse, Exprs: append(matches(route), rejection(route.Protocol))})
		}
		for i := range route.Endpoints {
			connection.AddRule(&nftables.Rule{Table: table, Chain: translate, Exprs: append(matches(route), choose(route, i)...)})
		}
	}
	if err := connection.Flush(); err != nil {
		return fmt.Errorf("set the rules of services: %w", err)
	}
	return nil
}

func protocolNumber(protocol corev1.Protocol) byte {
	switch protocol {
	case corev1.ProtocolUDP:
		return unix.IPPROTO_UDP
	case corev1.ProtocolSCTP:
		return unix.IPPROTO_SCTP
	}
	return unix.IPPROTO_TCP
}

// matches are packets to the route's address and port.
func matches(route Route) []expr.Any {
	address := route.Service.Addr().As4()
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocolNumber(route.Protocol)}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: address[:]},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(route.Service.Port())},
	}
}

// choose leads to one endpoint, each as often as the others: of those that are left, this one with its share.
func choose(route Route, index int) []expr.Any {
	var out []expr.Any
	if left := len(route.Endpoints) - index; left > 1 {
		zero := make([]byte, 4)
		binary.NativeEndian.PutUint32(zero, 0)
		out = append(out,
			&expr.Numgen{Register: 1, Modulus: uint32(left), Type: unix.NFT_NG_RANDOM},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: zero},
		)
	}
	endpoint := route.Endpoints[index]
	address := endpoint.Addr().As4()
	return append(out,
		&expr.Immediate{Register: 1, Data: address[:]},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(endpoint.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2},
	)
}

func rejection(protocol corev1.Protocol) expr.Any {
	if protocol == corev1.ProtocolTCP {
		return &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}
	}
	return &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3}
}
