package access

// TokenState says what came of looking for an end user's token.
type TokenState uint8

// What there is: no token of that issuer; one that is no good, or that can't be verified now; a good one.
const (
	TokenAbsent TokenState = iota
	TokenInvalid
	TokenValid
)

// Token is an end user as one issuer knows it.
type Token struct {
	State TokenState
	User  *EndUser // of a valid one; shared and never changed
}

// EndUser is what a verified token says.
type EndUser struct {
	Issuer  string // the claim "iss"
	Subject string // the claim "sub"
	Claims  map[string]Value
}

// Value is a claim: a string, a literal (a number or a boolean, in the Text that JSON has for it), a list or an object. The zero value is
// null, and matches nothing.
type Value struct {
	Kind   ValueKind
	Text   string
	List   []Value
	Object map[string]Value
}

// ValueKind says which field of a Value counts.
type ValueKind uint8

// The kinds of value.
const (
	Null ValueKind = iota
	Text
	Literal
	List
	Object
)

// Claim returns the claim at path: names of nested objects, outermost first. Null if there is none.
func (u *EndUser) Claim(path []string) Value {
	claims := u.Claims
	for k, name := range path {
		v := claims[name]
		if k == len(path)-1 {
			return v
		}
		if v.Kind != Object {
			break
		}
		claims = v.Object
	}
	return Value{}
}
