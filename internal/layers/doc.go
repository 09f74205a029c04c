// Package layers holds no code: its test keeps the rule of who may import whom (docs/architecture.md).
package layers
