package identityv1

// JoinTokenPrefix begins every single-use join token. What begins otherwise is a token of the platform, and may be shown again.
const JoinTokenPrefix = "isthmus-join-" //nolint:gosec // G101: what a token begins with is no secret
