// Package env resolves a container's environment, its command line and the fields of its pod, as Kubernetes defines them.
package env

import "strings"

// Expand replaces $(NAME) by the value that lookup finds. $$ is a dollar sign, and a name without a value stays as it is.
func Expand(text string, lookup func(name string) (string, bool)) string {
	var out strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '$' || i+1 == len(text) {
			out.WriteByte(text[i])
			continue
		}
		switch text[i+1] {
		case '$':
			out.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(text[i+2:], ')')
			if end < 0 {
				out.WriteString(text[i:])
				return out.String()
			}
			name := text[i+2 : i+2+end]
			if value, found := lookup(name); found {
				out.WriteString(value)
			} else {
				out.WriteString("$(" + name + ")")
			}
			i += 2 + end
		default:
			out.WriteByte('$')
		}
	}
	return out.String()
}
