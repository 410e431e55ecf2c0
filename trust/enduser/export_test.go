package enduser

// Kept is how many verified tokens of the first issuer are kept, and how long these are together.
func (g *Group) Kept() (tokens, size, counted int) {
	keys := g.sources[0].keys.Load()
	for _, v := range keys.verified {
		size += v.size
	}
	return len(keys.verified), size, keys.bytes
}
