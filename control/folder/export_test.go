package folder

// Blind is an option for a folder that the kernel tells nothing about.
func Blind(blind bool) func(*Config) { return func(c *Config) { c.blind = blind } }
