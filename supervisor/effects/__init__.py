"""The controller's own machine: its state directory and its log. What happens on hosts goes through links."""
