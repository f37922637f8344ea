"""The stages as functions of (workspace, parameters, observer), and what runs several of them."""
