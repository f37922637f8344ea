"""Who embeds many images: this process, tasks of an array job, or Ray; all write the same shards."""
